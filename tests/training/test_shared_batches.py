"""Two processes, or two threads, compute the same as one, up to rounding; with a mistake in sharing they do not."""

import json
import subprocess
import sys

import pytest
import torch

import system.processes
import training.steps
import vanilla_gan
from system.parts import once, part
from system.processes import usable_parts
from tests.conftest import ROOT, FinishedRun, make_domains, make_photos
from tests.helpers import two_processes

pytestmark = pytest.mark.golden
BY_THREADS = ["vanilla", "penalties", "cycle"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Run folders: those of one process, made here, and those of two, by torchrun."""
    root = tmp_path_factory.mktemp("processes")
    make_domains(root / "domains")
    make_photos(root / "photos")
    for name in two_processes.CASES:
        assert two_processes.run(f"{name}-one", root) == 0
    for name in BY_THREADS:
        assert two_processes.run(f"{name}-threads", root, "--parts=2") == 0
    assert two_processes.run("vanilla-to_resume", root, "--train_iters=2") == 0
    mistakes = {
        "not_averaged": (training.steps, "average_over_parts", lambda gradients: gradients),
        "same_noise": (vanilla_gan, "draw_shard", lambda draw, size: once(lambda: draw(2 * size))[:size]),
        "same_images": (training.steps, "local_shard", lambda batch: batch[: len(batch) // 2]),
    }
    for name, mistake in mistakes.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*mistake)
            assert two_processes.run(f"vanilla-threads_{name}", root, "--parts=2") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, ROOT / "tests" / "helpers" / "two_processes.py", root], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return root


def difference(root, name: str, other: str) -> float:
    """The largest difference of Adam's moments (and with them of all gradients), relative to the largest of each."""
    moments = [
        [
            value
            for optimizer in FinishedRun(root / run).checkpoint(3)["optimizers"].values()
            for state in optimizer["state"].values()
            for value in (state["exp_avg"], state["exp_avg_sq"])
        ]
        for run in (name, other)
    ]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize("name", two_processes.CASES)
def test_two_processes_compute_the_same_as_one(root, name):
    one, two = FinishedRun(root / f"{name}-one"), FinishedRun(root / f"{name}-two")
    assert difference(root, f"{name}-one", f"{name}-two") < 2e-5
    for a, b in zip(one.rows(), two.rows(), strict=True):
        assert {key: float(value or 0) for key, value in a.items()} == pytest.approx(
            {key: float(value or 0) for key, value in b.items()}, rel=1e-4
        )
    assert "2 processes share each batch of 4" in two.log and "processes share" not in one.log
    assert torch.equal(one.checkpoint(3)["rng"]["cpu"], two.checkpoint(3)["rng"]["cpu"]), (
        "so that one process can continue"
    )
    for a, b in zip(sorted(one.folder.rglob("*.png")), sorted(two.folder.rglob("*.png")), strict=True):
        assert a.name == b.name
        assert a.name == "losses.png" or not a.name.startswith("real") or a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", BY_THREADS)
def test_two_threads_compute_the_same_as_one(root, name):
    one, two = FinishedRun(root / f"{name}-one"), FinishedRun(root / f"{name}-threads")
    assert 0 < difference(root, f"{name}-one", f"{name}-threads") < 2e-5
    for a, b in zip(one.rows(), two.rows(), strict=True):
        assert {key: float(value or 0) for key, value in a.items()} == pytest.approx(
            {key: float(value or 0) for key, value in b.items()}, rel=1e-4
        )
    sessions = [json.loads((run.folder / "environment.json").read_text()) for run in (one, two)]
    assert [session["parts"] for [session] in sessions] == [1, 2]
    assert torch.equal(one.checkpoint(3)["rng"]["cpu"], two.checkpoint(3)["rng"]["cpu"])


def test_parts_leave_no_core_to_wait(root, monkeypatch):
    """A step has one thread of PyTorch for each part, a grid has all; afterwards all is as before."""
    seen: dict[str, set[tuple[int, int]]] = {"step": set(), "grid": set()}

    def note(what: str, function):
        def noted(*arguments):
            seen[what].add((part(), torch.get_num_threads()))
            return function(*arguments)

        return noted

    monkeypatch.setattr(vanilla_gan, "train_step", note("step", vanilla_gan.train_step))
    monkeypatch.setattr(vanilla_gan, "draw_samples", note("grid", vanilla_gan.draw_samples))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert two_processes.run("vanilla-noted", root, "--parts=2") == 0
        assert seen == {"step": {(0, 1), (1, 1)}, "grid": {(0, 2)}} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_parts_on_a_gpu_or_beside_processes_are_not_used(monkeypatch):
    assert usable_parts(2, torch.device("cpu")) == 2 and usable_parts(2, torch.device("cuda")) == 1
    monkeypatch.setattr(system.processes, "count_processes", lambda: 2)
    assert usable_parts(2, torch.device("cpu")) == 1


@pytest.mark.parametrize("flags", [["--norm=batch"], ["--spectral_norm"], ["--compile"], ["--batch_size=3"]])
def test_parts_that_are_not_the_same_are_refused(root, flags, capsys):
    with pytest.raises(SystemExit):
        two_processes.run("vanilla-refused", root, "--parts=2", *flags)
    assert f"--parts: 2 does not work with {flags[0].replace('=', ' ')}; leave one" in capsys.readouterr().err


def test_parts_may_change_when_a_run_is_resumed(root):
    """The note says that the last bits may differ."""
    assert two_processes.run("vanilla-changed", root, "--train_iters=2") == 0
    assert two_processes.resume(root / "vanilla-changed", "--parts=2", "--train_iters=3") == 0
    assert difference(root, "vanilla-one", "vanilla-changed") < 2e-5
    assert "parts changed from 1 to 2, so results may differ by rounding" in FinishedRun(root / "vanilla-changed").log


@pytest.mark.parametrize("other", ["two", "threads"])
def test_pools_are_the_same(root, other):
    pools = [FinishedRun(root / f"cycle-{which}").checkpoint(3)["pools"] for which in ("one", other)]
    for domain in ("X", "Y"):
        torch.testing.assert_close(pools[0][domain]["images"], pools[1][domain]["images"], rtol=0, atol=1e-5)


def test_two_processes_continue_a_run_of_one(root):
    assert difference(root, "vanilla-one", "vanilla-to_resume") < 2e-5
    assert [row["step"] for row in FinishedRun(root / "vanilla-to_resume").rows()] == ["1", "2", "3"]


@pytest.mark.parametrize("wrong", ["not_averaged", "same_noise", "same_images"])
@pytest.mark.parametrize("by", ["", "threads_"])
def test_mistakes_are_seen(root, by, wrong):
    assert difference(root, "vanilla-one", f"vanilla-{by}{wrong}") > 0.02
