"""`generate.py demo`: a trained network and ONNX Runtime Web in one HTML page."""

import hashlib
import tarfile
import time
from pathlib import Path

import torch

from generation.export import check_packages, export_compared, report_difference
from generation.sampling import seed_latent
from generation.trained import Trained, choose_generator, load_trained
from options.commands import DemoOptions
from options.pretrained import CREDIT, PREFIX, PRETRAINED
from pages.demo import Demo, Runtime, make_page
from system.downloads import fetch
from system.files import check_new_file, write_bytes
from system.progress import ProgressBar
from utils import LOG, UserError

# The npm package. The checksum belongs to the file whose SHA-512 npm publishes: q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+C...
VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SIZE = 33_106_585
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SCRIPT, BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
PACK = f"npm pack onnxruntime-web@{VERSION}"

SEEDS = 64  # of a DCGAN, whose latents the page contains


def find_runtime(path: str | None) -> Path:
    """Return the npm package of the runtime: `path`, else the file in torch's cache, downloaded if necessary.

    Raises:
        UserError: no such file, another file than the one of VERSION, or it cannot be downloaded.
    """
    if path is None:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / f"onnxruntime-web-{VERSION}.tgz"
        cached.parent.mkdir(parents=True, exist_ok=True)
        remedy = f"run `{PACK}` on a computer with a network, and give its file with --runtime"
        fetch(ADDRESS, cached, remedy, SIZE, SHA256)
        return cached
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--runtime: {file} is not a file; give the .tgz file that `{PACK}` writes")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(f"--runtime: {file} is not onnxruntime-web {VERSION} (its SHA-256 is {found[:12]}..., not "
                        f"{SHA256[:12]}...); give the .tgz file that `{PACK}` writes")  # fmt: skip
    return file


def read_runtime(file: Path) -> Runtime:
    """Return the runtime in the npm package `file`."""
    content = {}
    with tarfile.open(file) as package:
        for member in package:
            if member.name in (SCRIPT, BINARY):
                opened = package.extractfile(member)
                assert opened is not None
                content[member.name] = opened.read()
            if len(content) == 2:
                break
    return Runtime(VERSION, content[SCRIPT].decode(), content[BINARY])


def name_run(run: str) -> str:
    """Return the heading of a page: the name of the run folder, or the folder and the name of a file."""
    if run.startswith(PREFIX):
        return run.removeprefix(PREFIX)
    path = Path(run).resolve()
    return f"{path.parent.name}: {path.stem}" if path.is_file() else path.name


def name_directions(run: str, trained: Trained) -> dict[str, str]:
    """Return direction -> how the page calls it, such as "apples to oranges" for --X photos/apples --Y oranges."""
    if run.startswith(PREFIX):
        return dict.fromkeys(trained.generators, PRETRAINED[run.removeprefix(PREFIX)])
    folders = [getattr(trained.options, domain, None) for domain in "XY"]
    X, Y = (Path(folder).name if folder else domain for folder, domain in zip(folders, "XY", strict=True))
    X, Y = (X, Y) if X != Y else ("X", "Y")
    return {"X2Y": f"{X} to {Y}", "Y2X": f"{Y} to {X}"}


def demo(options: DemoOptions) -> int:
    """Write the page; return the exit code.

    Raises:
        UserError: the page cannot be written, no such run or direction, a missing package, or no runtime.
    """
    # Check everything that is quick to check, then find the runtime.
    path, started = Path(options.out), time.monotonic()
    check_new_file(path, (".html", ".htm"), options.overwrite)
    check_packages("onnx", "demo")
    trained = load_trained(Path(options.run), options.checkpoint)
    generators = trained.generators
    if options.direction is not None:
        generators = {options.direction: choose_generator(trained, options.direction)}
    package = find_runtime(options.runtime)

    # Export the networks, without the options of the run: they name folders of this computer.
    networks: dict[str, bytes] = {}
    for direction, G in ProgressBar(generators.items(), "export", "networks", len(generators)):
        content = export_compared(G, "onnx", {})
        if content is None:
            return report_difference(options.SCRIPT, "use another --checkpoint")
        networks[direction] = content

    # Make the page.
    names = name_directions(options.run, trained)
    about = Demo(
        name=name_run(options.run),
        step=trained.step,
        image_size=trained.options.image_size,
        directions={direction: names.get(direction, direction) for direction in networks},
        stride=getattr(next(iter(generators.values())), "stride", 1),
        credit=CREDIT if options.run.startswith(PREFIX) else "",
    )
    latents = None
    if not trained.is_translator:
        latents = torch.cat([seed_latent(seed, G.noise_size) for seed in range(SEEDS)]).flatten(1).numpy()
    page = make_page(about, networks, read_runtime(package), latents).encode(errors="backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page)
    seconds = time.monotonic() - started
    LOG.info("wrote %s: %.1f MB, in %.1f s; it opens in a browser and fetches nothing", path, len(page) / 1e6, seconds)
    return 0
