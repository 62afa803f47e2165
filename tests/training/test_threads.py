"""Fewer threads while other programs use the cores, by a clock of the test."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

import training.steps
from options import VanillaOptions
from tests.conftest import MODULES, FinishedRun, resume, train
from training.steps import StepRunner
from training.threads import SparingThreads


class Machine:
    """A machine whose cores other programs use, with a clock that only `work` moves."""

    def __init__(self, cores: int, busy: float = 0.0):
        self.cores, self.busy = cores, busy
        self.now = self.core_seconds = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.core_seconds += seconds * min(torch.get_num_threads(), self.cores - self.busy)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine(4)
    monkeypatch.setattr(time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(time, "process_time", lambda: machine.core_seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield machine
    torch.set_num_threads(before)


def work(threads: SparingThreads, machine: Machine, seconds: float) -> list[int]:
    """Take steps of a quarter of a second; return the number of threads of each."""
    seen = []
    for _ in range(round(4 * seconds)):
        with threads.watch():
            seen.append(torch.get_num_threads())
            machine.work(0.25)
        machine.now += 10.0  # between two steps: not measured
    return seen


def test_an_idle_machine_keeps_all_threads(machine):
    with SparingThreads() as threads:
        assert set(work(threads, machine, 100)) == {4}


def test_a_burst_of_one_window_changes_nothing(machine):
    with SparingThreads() as threads:
        for _ in range(5):
            machine.busy = 2.0
            assert set(work(threads, machine, threads.WINDOW)) == {4}
            machine.busy = 0.0
            assert set(work(threads, machine, threads.WINDOW)) == {4}


@pytest.mark.parametrize(("busy", "left"), [(0.3, 4), (0.5, 3), (1.0, 3), (1.5, 2), (3.0, 1), (3.9, 1)])
def test_threads_without_a_core_rest(machine, busy, left):
    machine.busy = busy
    with SparingThreads() as threads:
        assert set(work(threads, machine, 2 * threads.WINDOW)) == {4}
        assert set(work(threads, machine, threads.WINDOW)) == {left}
    assert torch.get_num_threads() == 4, "restored"


def test_all_threads_are_tried_again_and_stay_when_the_cores_are_free(machine, caplog):
    with SparingThreads() as threads:
        machine.busy = 1.0
        work(threads, machine, 2 * threads.WINDOW)
        period = threads.REST * threads.WINDOW
        for _ in range(3):
            assert set(work(threads, machine, period)) == {3}
            assert set(work(threads, machine, threads.TRIAL)) == {4}
        work(threads, machine, period)
        machine.busy = 0.0
        assert set(work(threads, machine, threads.TRIAL + 10 * threads.WINDOW)) == {4}
        machine.busy = 2.0
        assert set(work(threads, machine, 2 * threads.WINDOW)) == {4}
        assert set(work(threads, machine, threads.WINDOW)) == {2}


def test_fewer_still_when_more_programs_come(machine):
    with SparingThreads() as threads:
        machine.busy = 1.0
        work(threads, machine, 3 * threads.WINDOW)
        machine.busy = 2.0
        work(threads, machine, 3 * threads.WINDOW)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed(machine, fixed):
    machine.busy = 2.0
    with SparingThreads(fixed) as threads:
        assert (set(work(threads, machine, 100)) == {4}) == fixed


@pytest.mark.parametrize(("flags", "before", "used"), [
    ([], 2, [2, 2, 1, 1]), (["--threads=2"], 1, [2] * 4), (["--deterministic"], 2, [2] * 4),
])  # fmt: skip
@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_a_run_lets_threads_rest_unless_their_number_is_fixed(
    images_of, tmp_path, monkeypatch, script, flags, before, used
):
    seen = []
    train_step = MODULES[script].train_step

    def note(*arguments):
        seen.append(torch.get_num_threads())
        return train_step(*arguments)

    monkeypatch.setattr(MODULES[script], "train_step", note)
    monkeypatch.setattr(SparingThreads, "WINDOW", 0.0)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)  # as if this process never had a core
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--name=run", *flags]
        assert train(*flags, "--train_iters=4", script=script) == 0
        assert seen == used and torch.get_num_threads() == 2, "restored at the end"
    finally:
        torch.set_num_threads(threads)
    log = FinishedRun(tmp_path / "run").log
    said = "so 1 of 2 threads work until the cores are free again. Results may differ by rounding; --threads 2 keeps"
    assert log.count(said) == (1 in used)


def test_a_run_on_a_gpu_or_of_several_processes_keeps_its_threads(monkeypatch):
    """Processes wait for each other without using a core, so a missing core says nothing there."""
    torch.set_num_threads(2)
    try:
        for device, processes, fixed in (("cpu", 1, False), ("cpu", 2, True), ("mps", 1, True)):
            monkeypatch.setattr(training.steps, "count_processes", lambda processes=processes: processes)
            state = SimpleNamespace(device=torch.device(device))
            assert StepRunner(state, {}, VanillaOptions(), None).threads._fixed == fixed
    finally:
        torch.set_num_threads(1)


def test_threads_may_change_when_a_run_is_resumed(photos, tmp_path):
    """The note says that the last bits may differ."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    try:
        assert train(*flags, "--train_iters=1") == 0
        assert resume(f"--resume={tmp_path / 'run'}", "--threads=2", "--train_iters=2") == 0
    finally:
        torch.set_num_threads(1)
    run = FinishedRun(tmp_path / "run")
    assert "threads changed from 1 to 2, so results may differ by rounding" in run.log
    assert run.options["threads"] == 2


def test_a_run_with_the_former_option_parts_is_resumed(photos, tmp_path):
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1") == 0
    for path in (tmp_path / "run" / "options.json", tmp_path / "run" / "checkpoint-000001.pt"):
        is_json = path.suffix == ".json"
        content = json.loads(path.read_text()) if is_json else torch.load(path, weights_only=True)
        content["options"]["parts"] = 2
        path.write_text(json.dumps(content)) if is_json else torch.save(content, path)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2") == 0
