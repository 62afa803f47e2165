"""Tiny diffusion models with random weights, and a stand-in for the Hugging Face Hub that has them."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

BLOCKS = dict(block_out_channels=(8, 16), norm_num_groups=4)
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def make_unconditional(folder: Path, seed: int = 0) -> Path:
    """Write a DDPMPipeline for images of 16x16 to a folder; return the folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=16, layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **BLOCKS,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def make_text_to_image(folder: Path, with_safety_checker: bool = False) -> Path:
    """Write a StableDiffusionPipeline for images of 16x16 to a folder; return the folder.

    Its tokenizer knows single letters only.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir(parents=True)
    (parts / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (parts / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(parts / "vocab.json"), str(parts / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=len(WORDS) - 2, eos_token_id=len(WORDS) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        **BLOCKS,
    )  # fmt: skip
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    checker, extractor = _make_safety_checker() if with_safety_checker else (None, None)
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, checker, extractor,
        requires_safety_checker=with_safety_checker,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _make_safety_checker() -> tuple:
    """Return a safety checker that blocks every image, and what prepares its images."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(tiny, image_size=16, patch_size=8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tiny, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2)  # no image is as far from a concept
    return checker, CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


class FakeHub(BaseHTTPRequestHandler):
    """Answers the few requests of huggingface_hub that fetch a model, or upload one in a single commit.

    Attributes:
        models: name of a model -> its folder, which gets the uploaded files, and its commit.
        gated: names of models that need a login.
        served: paths of the files that were sent.
    """

    models: dict[str, tuple[Path, str]]
    gated: set[str]
    served: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name not in self.models:
            return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        if name in self.gated:
            return self.answer(403, headers={"X-Error-Code": "GatedRepo"})
        folder, commit = self.models[name]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        if path.startswith("api/") and "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": self.hash(file)}
                for name, file in zip(names, files, strict=True)
            ]
            return self.answer(200, json.dumps(entries).encode())
        if path.startswith("api/"):
            siblings = [{"rfilename": file} for file in names]
            return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
        revision, _, file_name = path.removeprefix(f"{name}/resolve/").partition("/")
        if revision not in ("main", commit):
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        if file_name not in names:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        file = folder / file_name
        if self.command == "GET":
            self.served.append(file_name)
        return self.answer(200, file.read_bytes(), {"ETag": f'"{self.hash(file)}"', "X-Repo-Commit": commit})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        address, path = f"http://{self.headers['Host']}", self.path.strip("/")
        if path == "api/repos/create":
            asked = json.loads(content)
            assert asked["visibility"] == "private"
            return self.answer(200, json.dumps({"url": f"{address}/{asked['organization']}/{asked['name']}"}).encode())
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if path.endswith("/preupload/main"):  # every file comes with the commit
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in
                     json.loads(content)["files"]]  # fmt: skip
            return self.answer(200, json.dumps({"files": files}).encode())
        if path.endswith("/commit/main"):
            folder, commit = self.models[name]
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    file = folder / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            result = {"success": True, "commitUrl": f"{address}/{name}/commit/{commit}", "commitOid": commit}
            return self.answer(200, json.dumps(result).encode())
        self.answer(200, b'{"warnings": [], "errors": []}')  # the model card is checked before

    def answer(self, code: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @staticmethod
    def hash(file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve_hub(models: dict[str, tuple[Path, str]]) -> Iterator[tuple[str, type[FakeHub]]]:
    """Serve models on the loopback address; yield the address, and the handler, whose attributes may be changed."""
    handler = type("Hub", (FakeHub,), {"models": models, "gated": set(), "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
