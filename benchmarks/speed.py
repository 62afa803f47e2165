"""Compare the speed of training with the usual code.

    python benchmarks/speed.py                                   # every case, about 17 minutes on two CPU cores
    python benchmarks/speed.py --case CycleGAN-64 --seconds 60 --rounds 5
    python benchmarks/speed.py --amp off                         # the project in float32 where bf16 is the default
    python benchmarks/speed.py --json                            # for machines

For each case the plain code of plain.py (A) and the project's own command with its logs, grids and checkpoints (B)
train on the toy cats in turn, A B A B, each in a process of its own; the plain code trains in float32. The script
prints the medians of the iterations per second after a warm-up, the median of the ratios of the rounds, and the peak
memory. The floor is the speed that a step would have if all its arithmetic ran as fast as a large matrix product in the
same precision, which is measured after each pair. It counts the floating-point operations of the project's step, which
needs fewer than the plain step. No other program should run at the same time. On a CPU the project also trains beside
a process that never waits ("busy").
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import cycle_gan
import vanilla_gan
from benchmarks import plain
from options import DEVICES, CycleOptions, VanillaOptions, parse_command_line
from sources.domains import toy_cats
from system.device import choose_device, choose_precision
from system.program import run_main
from training.steps import StepRunner
from utils import UserError

_CYCLE = ["--disc=patch", "--use_cycle_consistency_loss"]
_PAPER = ["--gen=resnet_9blocks", "--upsample=deconv", "--disc=patch70", "--g_conv_dim=64", "--d_conv_dim=64",
          "--batch_size=1"]  # fmt: skip
_SPIN = [sys.executable, "-c", "while True: pass"]

# Case -> script, its flags, and the same training in plain code.
CASES: dict[str, tuple[Any, list[str], Any]] = {
    "DCGAN-64": (vanilla_gan, [], plain.train_dcgan),
    "CycleGAN-64": (cycle_gan, _CYCLE, plain.train_cyclegan_64),
    "CycleGAN-256": (cycle_gan, ["--image_size=256", *_CYCLE, *_PAPER], plain.train_cyclegan_256),
}


class TimeIsUp(Exception):  # noqa: N818 (it is not an error)
    """The measurement is over."""


class Stopwatch:
    """Counts steps from the end of a warm-up until the time is over; then raises TimeIsUp.

    Args:
        seconds: how long to measure. At least one step is the warm-up and two are counted, however long they take.
    """

    def __init__(self, seconds: float, device: torch.device):
        self.seconds, self.device = seconds, device
        self.warm_up = min(5.0, seconds / 4)
        self.first = time.monotonic()
        self.started: float | None = None
        self.steps, self.rate = 0, 0.0

    def tick(self) -> None:
        """Count a step."""
        self.steps += 1
        now = time.monotonic()
        if self.started is None:
            if now - self.first >= self.warm_up:
                self.started, self.steps = self._now(), 0
        elif now - self.started >= self.seconds and self.steps >= 2:
            self.rate = self.steps / (self._now() - self.started)
            raise TimeIsUp

    def _now(self) -> float:
        """Return the time at which all work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def find_cats(case: str) -> Path:
    """Return the root of the toy cats at the image size of a case."""
    return toy_cats(256 if "--image_size=256" in CASES[case][1] else 64)


def train_baseline(case: str, device: torch.device, watch: Stopwatch) -> None:
    """Train with the plain code until the watch raises TimeIsUp."""
    CASES[case][2](find_cats(case), device, watch.tick)


def read_options(case: str, device: torch.device, folder: str, amp: str) -> VanillaOptions | CycleOptions:
    """Return the options of a very long run, as its command line gives them."""
    script, flags, _ = CASES[case]
    data = find_cats(case) / "trainB" if script is vanilla_gan else find_cats(case)
    flags = [f"--data={data}", *flags, "--train_iters=1000000", f"--device={device.type}", f"--checkpoint_dir={folder}",
             f"--amp={amp}"]  # fmt: skip
    return parse_command_line(VanillaOptions if script is vanilla_gan else CycleOptions, "", flags)


def train_project(case: str, device: torch.device, watch: Stopwatch, amp: str) -> None:
    """Train with the script, in a run folder that is deleted afterwards, until the watch raises TimeIsUp."""
    run = StepRunner.run

    def run_and_count(steps: StepRunner, lr: float) -> None:
        run(steps, lr)
        watch.tick()

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(StepRunner, "run", run_and_count):
        CASES[case][0].main(read_options(case, device, folder, amp))


def count_operations(case: str, device: torch.device) -> float:
    """Return the floating-point operations of one step of the project, without data and element-wise work."""
    counts = []

    def step_and_stop(*arguments: Any) -> None:
        with FlopCounterMode(display=False) as counter:
            train_step(*arguments)
        counts.append(counter.get_total_flops())
        raise TimeIsUp

    script = CASES[case][0]
    train_step = script.train_step
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(script, "train_step", step_and_stop):
        with contextlib.suppress(TimeIsUp):
            script.main(read_options(case, device, folder, "off"))
    return counts[0]


def measure_products(device: torch.device, seconds: float, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of the product of two matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.rand(2, n, n, device=device, dtype=dtype)
    watch = Stopwatch(seconds, device)
    try:
        while True:
            a @ b
            if device.type == "cuda" and watch.steps % 10 == 9:
                torch.cuda.synchronize()  # else the queue of kernels would run ahead of the clock
            watch.tick()
    except TimeIsUp:
        return 2 * n**3 * watch.rate


def measure_here(side: str, case: str, seconds: float, device: torch.device, amp: str) -> dict[str, float]:
    """Run one side of a case in this process.

    Returns:
        For the sides "plain", "ours" and "busy": rate (iterations per second), memory_mb (the peak of this process),
        and on CUDA device_memory_mb. For "floor": the operations of a step, and operations_per_second of matrix
        products.
    """
    if side == "floor":
        dtype = choose_precision(amp, device).dtype or torch.float32
        products = measure_products(device, min(seconds, 3.0), dtype)
        return {"operations": count_operations(case, device), "operations_per_second": products}
    watch = Stopwatch(seconds, device)
    with contextlib.suppress(TimeIsUp):
        train_baseline(case, device, watch) if side == "plain" else train_project(case, device, watch, amp)
    result = {"rate": watch.rate, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}  # from KB
    if device.type == "cuda":
        result["device_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return result


def measure_apart(side: str, case: str, seconds: float, device: torch.device, amp: str) -> dict[str, float]:
    """Run one side of a case in a process of its own; return the result of `measure_here` there."""
    command = [sys.executable, __file__, "--side", side, "--case", case, "--seconds", str(seconds), "--device",
               device.type, "--amp", amp]  # fmt: skip
    with contextlib.ExitStack() as stack:
        if side == "busy":
            stack.callback(stack.enter_context(subprocess.Popen(_SPIN)).kill)
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"{side} of {case} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def describe_machine(device: torch.device) -> str:
    """Return device, cores and versions in one line."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        capability = torch.backends.cpu.get_cpu_capability()
        name = f"{model or platform.processor()}, {torch.get_num_threads()} thread(s), {capability}"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def summarize(case: str, precision: str, results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians of a case, the ratios, and the share of the floor."""
    median = {
        side: {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
        for side, rounds in results.items()
    }
    floor = median["floor"]["operations_per_second"] / median["floor"]["operations"]  # iterations per second
    ratios = [ours["rate"] / plain["rate"] for ours, plain in zip(results["ours"], results["plain"], strict=True)]
    return {
        "case": case, "precision": precision, "plain": median["plain"], "ours": median["ours"],
        "ratio": statistics.median(ratios), "ratios": ratios,
        "gflop": median["floor"]["operations"] / 1e9, "gflops": median["floor"]["operations_per_second"] / 1e9,
        "floor_rate": floor, "share_of_floor": median["ours"]["rate"] / floor, "busy": median.get("busy"),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], machine: str) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        machine,
        "",
        "| case | ours in | plain it/s | ours it/s | ratio (each round) | GFLOP a step | floor it/s at GFLOP/s "
        "| share of the floor | busy it/s | memory MB, plain and ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        key = "device_memory_mb" if "device_memory_mb" in row["ours"] else "memory_mb"
        busy = ""
        if row["busy"] is not None:
            busy = f"{row['busy']['rate']:.3g} ({row['busy']['rate'] / row['ours']['rate']:.0%})"
        lines.append(
            f"| {row['case']} | {row['precision']} | {row['plain']['rate']:.3g} | {row['ours']['rate']:.3g} "
            f"| {row['ratio']:.2f} ({', '.join(f'{ratio:.2f}' for ratio in row['ratios'])}) | {row['gflop']:.1f} "
            f"| {row['floor_rate']:.3g} at {row['gflops']:.0f} | {row['share_of_floor']:.0%} | {busy} "
            f"| {row['plain'][key]:.0f}, {row['ours'][key]:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only this case; may be given several times")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds to measure each side in each round (default: 20)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of A B pairs (default: 3)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--amp", default="auto", choices=("auto", "off", "bf16"), help="of the project (default: auto)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    sides = ("plain", "ours", "busy", "floor")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)  # of a child process
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.rounds < 1:
        parser.error("--seconds and --rounds: use numbers above 0")
    device = choose_device(options.device)
    if options.side:
        print(json.dumps(measure_here(options.side, options.case[0], options.seconds, device, options.amp)))
        return 0

    rows = []
    for case in options.case or CASES:
        find_cats(case)  # drawn before the clock runs
        results: dict[str, list[dict[str, float]]] = {"plain": [], "ours": [], "floor": []}
        if device.type == "cpu":
            results["busy"] = []
        for _ in tqdm(range(options.rounds), case, unit=" rounds", disable=None):
            for side, rounds in results.items():
                rounds.append(measure_apart(side, case, options.seconds, device, options.amp))
        rows.append(summarize(case, choose_precision(options.amp, device).name, results))
    machine = describe_machine(device)
    if any(row["share_of_floor"] > 1 for row in rows) and device.type == "cpu":
        sys.stderr.write(
            "Warning: faster than the floor, so another program was running; measure again without other programs\n"
        )
    print(json.dumps({"machine": machine, "cases": rows}, indent=2) if options.json else table(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:]), "speed.py"))
