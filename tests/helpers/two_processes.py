"""The program of two processes for test_shared_batches.py: the same short trainings as one process, and wrong ones."""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import data_loader
import training.feature_matching
import training.steps
import vanilla_gan
from options import parse_command_line
from system.processes import draw_shard, gather_batch, local_main_first, local_shard, rank
from tests.conftest import MODULES, OPTIONS, TINY
from training.feature_matching import FeatureMatching

# A learning rate so small that the weights stay: rounding differences cannot grow, and the moments of Adam show the
# gradients of every step.
COMMON = ["--train_iters=3", "--log_step=1", "--lr=1e-9", "--beta1=0.9", "--data_aug=deluxe", "--use_diffaug"]


CASES = {
    "vanilla": ("vanilla_gan.py", []),
    "sums": ("vanilla_gan.py", ["--log_step=3", "--checkpoint_every=1"]),
    "streamed": ("vanilla_gan.py", ["--cache_gb=0", "--num_workers=2"]),
    "penalties": ("vanilla_gan.py", ["--r1_gamma=1", "--r2_gamma=1", "--penalty_every=2", "--lambda_modes=0.1"]),
    "muon": ("vanilla_gan.py", ["--d_optimizer=muon", "--d_lr=1e-4"]),
    "features": ("vanilla_gan.py", ["--lambda_features=1"]),
    "odd": ("vanilla_gan.py", ["--lambda_features=1", "--batch_size=6"]),  # three images in each process
    "codes": ("vanilla_gan.py", ["--lambda_codes=1", "--data_aug=basic"]),
    "initial": ("vanilla_gan.py", ["--init_from={root}/vanilla-one", "--seed=12"]),
    "cycle": ("cycle_gan.py", ["--pool_size=5", "--use_cycle_consistency_loss", "--use_identity_loss"]),
}


def run(name: str, root: Path, *flags: str) -> int:
    """Train one case of CASES in the folder root/name; return the exit code."""
    script, own = CASES[name.partition("-")[0]]
    data = root / ("photos" if script == "vanilla_gan.py" else "domains")
    own = [flag.format(root=root) for flag in own]
    flags = [*TINY[script], *COMMON, *own, f"--data={data}", f"--checkpoint_dir={root}", f"--name={name}", *flags]
    return MODULES[script].main(parse_command_line(OPTIONS[script], "", flags))


def resume(folder: Path, *flags: str) -> int:
    return vanilla_gan.main(parse_command_line(OPTIONS["vanilla_gan.py"], "", [f"--resume={folder}", *flags]))


def draw_slowly(file: Path) -> bool:
    """Make a file in the first process, as it does with the toy cats; return whether the file exists."""
    if rank() == 0:
        time.sleep(1)
        file.touch()
    return file.exists()


def main(root: Path) -> None:
    """Train every case, then wrong variants of the first, which the test has to reject."""
    dist.init_process_group("gloo")
    assert local_main_first(lambda: draw_slowly(root / "drawn")), "the others wait for the first"
    for name in CASES:
        run(f"{name}-two", root)
    resume(root / "vanilla-to_resume", "--train_iters=3")
    for step in (2, 3):
        if dist.get_rank() == 0:
            (root / "sums-two" / f"checkpoint-{step:06d}.pt").unlink()
    dist.barrier()
    resume(root / "sums-two", "--train_iters=3")

    right = training.steps.average_over_processes
    training.steps.average_over_processes = lambda tensors: None
    run("vanilla-not_averaged", root)
    training.steps.average_over_processes = right
    vanilla_gan.draw_shard = lambda draw, size: draw(2 * size)[:size]
    run("vanilla-same_noise", root)
    vanilla_gan.draw_shard = draw_shard
    data_loader.local_shard = lambda batch: batch[: len(batch) // 2]
    run("vanilla-same_images", root)
    data_loader.local_shard = local_shard
    training.feature_matching.gather_batch = lambda shard: torch.cat([shard, shard])
    run("features-own_images", root)
    training.feature_matching.gather_batch = gather_batch
    forward = FeatureMatching.forward

    def halve_gradient(self, images):
        loss = forward(self, images)
        return loss.detach() + (loss - loss.detach()) / 2

    FeatureMatching.forward = halve_gradient
    run("features-halved", root)
    dist.destroy_process_group()  # or a thread of gloo may still run when the interpreter ends, which aborts


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
