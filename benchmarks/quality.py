"""Train DCGANs on one folder with the settings of a published table, and compare their quality.

    python benchmarks/quality.py --data photos/cats                                # hours on a CPU, minutes on a GPU
    python benchmarks/quality.py --data photos/cats --case best --case deluxe --train_iters 1600
    python benchmarks/quality.py --data photos/cats --features mobilenet_v2_features.pt

The six cases of the table are those of "When cats meet GANs": basic or deluxe augmentation, without DiffAugment, with
it, and with it and spectral norm; `best` is our own preset. Each case is a run folder in --checkpoint_dir, named
case-iterations-seed. An unfinished run is resumed, a finished run is only measured. Flags after `--` go to
vanilla_gan.py when a run starts.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_GRUMPY = ["--preset", "grumpycat64"]
_AUG, _SN = ["--use_diffaug"], ["--spectral_norm"]

# Case -> (flags of vanilla_gan.py, the FID that the project published for grumpy cats after 500 epochs).
CASES = {
    "basic": (_GRUMPY, 384),
    "basic-diffaug": ([*_GRUMPY, *_AUG], 55),
    "basic-diffaug-sn": ([*_GRUMPY, *_AUG, *_SN], 123),
    "deluxe": ([*_GRUMPY, "--data_aug", "deluxe"], 98),
    "deluxe-diffaug": ([*_GRUMPY, "--data_aug", "deluxe", *_AUG], 72),
    "deluxe-diffaug-sn": ([*_GRUMPY, "--data_aug", "deluxe", *_AUG, *_SN], 136),
    "best": (["--preset", "grumpycat64_best"], None),
}
COLUMNS = ("precision", "recall", "nearest distance ratio", "SSIM between images")


def run(*command: str) -> None:
    """Run a script of the project; end with its exit code if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)])
    if done.returncode:
        sys.exit(done.returncode)


def measure(folder: Path, features: str) -> dict[str, str]:
    """Evaluate the newest checkpoint of a run; return metric -> value of the newest rows of its metrics.csv."""
    run(ROOT / "evaluate.py", folder, "--features", features)
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "evaluate.py"]
    newest = [row for row in rows if all(row[key] == rows[-1][key] for key in ("step", "features", "seed", "split"))]
    return {row["metric"]: row["value"] for row in newest}


def main() -> int:
    """Train and measure the cases of the command line, and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images to train on")
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; default: all")
    parser.add_argument("--train_iters", type=int, default=6400, metavar="N", help="default: 6400")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; default: 11")
    parser.add_argument("--features", default="inception", help="as in evaluate.py; default: inception")
    parser.add_argument("--checkpoint_dir", type=Path, default="checkpoints/quality", metavar="FOLDER")
    arguments = sys.argv[1:]
    place = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = parser.parse_args(arguments[:place]), arguments[place + 1 :]

    lines = []
    for case in options.case or CASES:
        flags, published = CASES[case]
        for seed in options.seed or [11]:
            folder = options.checkpoint_dir / f"{case}-{options.train_iters}-{seed}"
            if folder.exists():
                run(ROOT / "vanilla_gan.py", "--resume", folder)
            else:
                run(
                    ROOT / "vanilla_gan.py", *flags, "--data", options.data, "--train_iters", options.train_iters,
                    "--seed", seed, "--name", folder.name, "--checkpoint_dir", folder.parent, *rest,
                )  # fmt: skip
            found = measure(folder, options.features)
            first = [name for name in found if name.split()[0] in ("KID", "FID", "kernel", "Frechet")]
            cells = [f"{float(found[name]):.4g}" for name in (*first, *COLUMNS) if name in found]
            lines.append(f"| {case} | {seed} | {' | '.join(cells)} | {published or ''} |")
    names = [case for case in (*first, *COLUMNS) if case in found]
    print(f"\n| case | seed | {' | '.join(names)} | FID, published |\n|{'---|' * (len(names) + 3)}")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
