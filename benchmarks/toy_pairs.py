"""Compare CycleGAN runs on the toy cats with the truth: each held-out cat is drawn in both domains.

    python benchmarks/toy_pairs.py checkpoints/with-cycle checkpoints/without-cycle

Prints for each run, and for two maps that take no training, how far the translations of testA are from testB and the
other way round: mean absolute difference of pixels in [0, 1] (less is better), and SSIM (1 is best). "same image" is
the identity map, "mean image" the mean of the target domain's training images, whatever the input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from cycle_gan import SCRIPT, build_networks
from data_loader import decode, list_images, toy_cats
from options import CycleOptions
from runs import read_checkpoint
from utils import UserError, run_main

TRUTH = "attributes.json"  # in every folder of toy cats


def load_all(folder: Path, size: int) -> Tensor:
    """Return every image of a folder, (N, 3, S, S) in [0, 1]."""
    return torch.stack([decode(path, size) for path in list_images(folder)]).float() / 255


@torch.no_grad()
def translate(checkpoint: dict, direction: str, images: Tensor) -> Tensor:
    """Return the translations of images (N, 3, S, S) in [0, 1] by a generator: its moving average if it has one."""
    name = f"G_{direction}"
    G = build_networks(CycleOptions.from_dict(checkpoint["options"]))[name].eval()
    G.load_state_dict(checkpoint["ema"].get(name) or checkpoint["networks"][name])
    return G(images * 2 - 1) / 2 + 0.5


def score(images: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the mean absolute difference and the SSIM of two sets of images (N, 3, S, S) in [0, 1]."""
    ssim = structural_similarity_index_measure(images, truth, data_range=1.0)
    return (images - truth).abs().mean().item(), ssim.item()


def main(arguments: list[str]) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folder of cycle_gan.py on toy cats")
    checkpoints = {}
    for folder in parser.parse_args(arguments).runs:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give run folders of cycle_gan.py")
        checkpoint = checkpoints[folder] = read_checkpoint(folder, warn=print)
        if checkpoint["script"] != SCRIPT:
            raise UserError(f"{folder} is a run of {checkpoint['script']}; give those of {SCRIPT}")
        X, data = checkpoint["options"]["X"], checkpoint["options"]["data"]
        root = Path(X).parent if X is not None else data
        if root is not None and not (Path(root) / TRUTH).is_file():
            raise UserError(f"{folder} was not trained on toy cats; there is no truth to compare it with")
    sizes = {checkpoint["options"]["image_size"] for checkpoint in checkpoints.values()} or {64}
    if len(sizes) > 1:
        raise UserError(f"runs at {' and '.join(map(str, sorted(sizes)))} pixels can't share a table; give one size")
    (size,) = sizes
    root = toy_cats(size)
    cats = {name: load_all(root / name, size) for name in ("trainA", "trainB", "testA", "testB")}

    rows = {f"{folder}, {checkpoint['step']:,} iterations": checkpoint for folder, checkpoint in checkpoints.items()}
    width = max(map(len, ["mean image", *rows]))

    def row(name: str, a_to_b: Tensor, b_to_a: Tensor) -> str:
        (l1_b, ssim_b), (l1_a, ssim_a) = score(a_to_b, cats["testB"]), score(b_to_a, cats["testA"])
        return f"{name:{width}}  {l1_b:6.3f}  {ssim_b:6.3f}  {l1_a:6.3f}  {ssim_a:6.3f}"

    print(f"{len(cats['testA'])} held-out pairs, {size}x{size}")
    print(f"{'':{width}}  {'gray to grumpy':>14}  {'grumpy to gray':>14}")
    print(f"{'':{width}}  {'L1':>6}  {'SSIM':>6}  {'L1':>6}  {'SSIM':>6}")
    print(row("same image", cats["testA"], cats["testB"]))
    mean_a, mean_b = (cats[name].mean(0).expand_as(cats["testA"]) for name in ("trainA", "trainB"))
    print(row("mean image", mean_b, mean_a))
    for name, checkpoint in rows.items():
        a_to_b, b_to_a = (
            translate(checkpoint, way, cats[test]) for way, test in (("XtoY", "testA"), ("YtoX", "testB"))
        )
        print(row(name, a_to_b, b_to_a))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:]), "toy_pairs.py"))
