"""docs/sharing.md: its Python blocks, in their order, with a stand-in for the Hugging Face Hub on this machine."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from generate import load_generator
from tests.conftest import ROOT, FinishedRun, make_photos, resume, train
from tests.helpers.tiny_diffusion import serve_hub

pytest.importorskip("huggingface_hub")

TEXT = (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8")
PREPARE, UPLOAD, READ, UPLOAD_RUN, READ_RUN = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
[CARD] = re.findall(r"```markdown\n(.*?)```", TEXT, re.DOTALL)
COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folders of two empty repositories by their names; huggingface_hub uses this hub, and a new cache."""
    from huggingface_hub import constants

    folders = {f"YOUR_NAME/{name}": tmp_path / "hub" / name for name in ("my-cats", "my-cats-run")}
    with serve_hub({name: (folder, COMMIT) for name, folder in folders.items()}) as (address, _):
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("HF_TOKEN", "a token")
        monkeypatch.setattr(constants, "ENDPOINT", address)
        url = address + constants.HUGGINGFACE_CO_URL_TEMPLATE[len("https://huggingface.co") :]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield folders


@pytest.fixture
def project(tmp_path, monkeypatch) -> None:
    """The run that the page names, in the current folder. The path of its images tells a secret."""
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "secret-client" / "cats")
    assert train("--data=secret-client/cats", "--name=my-cats", "--checkpoint_every=1", "--train_iters=2") == 0


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_page(project, hub):
    made: dict = {}
    exec(PREPARE, made)
    shared = Path("shared/my-cats")
    assert names(shared) == {"checkpoint-000002.pt"}
    (shared / "README.md").write_text(CARD)
    exec(UPLOAD, made)
    assert names(hub["YOUR_NAME/my-cats"]) == {"checkpoint-000002.pt", "README.md"}

    # The generator comes back as it was, without the images, the run and the shared folder.
    expected = load_generator("checkpoints/my-cats")
    for folder in ("checkpoints", "shared", "secret-client"):
        Path(folder).rename(f"moved-{folder}")
    exec(READ, made)
    assert COMMIT in made["folder"] and made["images"].shape == (16, 3, 32, 32)
    torch.testing.assert_close(made["G"].state_dict(), expected.state_dict(), rtol=0, atol=0)

    # The whole run: only useless files stay behind, and training continues elsewhere.
    Path("moved-checkpoints").rename("checkpoints")
    exec(UPLOAD_RUN, made)
    uploaded = names(hub["YOUR_NAME/my-cats-run"])
    assert {name.partition(".")[0] for name in names(Path("checkpoints/my-cats")) - uploaded} == {"events", ""}
    shutil.rmtree("checkpoints/my-cats")
    exec(READ_RUN, made)
    assert uploaded < names(Path("checkpoints/my-cats-2"))
    arguments = ["--resume=checkpoints/my-cats-2", "--data=moved-secret-client/cats", "--train_iters=3"]
    assert resume(*arguments) == 0
    assert FinishedRun(Path("checkpoints/my-cats-2")).steps("checkpoint-*.pt") == [1, 2, 3]


@pytest.mark.parametrize("where", ["checkpoints/my-cats/checkpoint-000002.pt", "shared/my-cats/checkpoint-000002.pt"])
def test_a_shared_checkpoint_contains_no_path(where, project):
    """The checkpoint of the run is the control."""
    exec(PREPARE, {})
    assert (b"secret-client" in Path(where).read_bytes()) == where.startswith("checkpoints/")
