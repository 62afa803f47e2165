"""Fewer threads while other programs use the cores, by a clock of the test."""

import itertools
import json
import logging
import time
from types import SimpleNamespace

import pytest
import torch

import training.steps
import training.threads
from options import VanillaOptions
from tests.conftest import MODULES, FinishedRun, resume, train
from training.steps import StepRunner
from training.threads import SparingThreads


class Machine:
    """Four cores, some of which other programs use, with a clock that only `step` moves.

    A step with all threads on an idle machine takes a quarter of a second. Where a thread lacks a core, all wait.
    """

    def __init__(self):
        self.busy = 0.0  # cores that other programs use
        self.serial = 0.0  # share of the work during which all threads but one sleep
        self.now = self.core_seconds = 0.0

    def step(self) -> None:
        threads, free = torch.get_num_threads(), 4 - self.busy
        speed = threads if threads <= free else free / (2 if threads > 1 else 1)
        seconds = self.serial + (1 - self.serial) / speed
        self.now += seconds
        self.core_seconds += self.serial + (seconds - self.serial) * min(threads, free)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(time, "process_time", lambda: machine.core_seconds)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield machine
    torch.set_num_threads(before)


def work(threads: SparingThreads, machine: Machine, seconds: float) -> list[int]:
    """Take steps for at least so many seconds of steps; return the number of threads of each."""
    seen, spent = [], 0.0
    while spent < seconds - 1e-9:
        begin = machine.now
        with threads.watch():
            seen.append(torch.get_num_threads())
            machine.step()
        spent += machine.now - begin
        machine.now += 10.0  # between two steps: not measured
    return seen


def changes(seen: list[int]) -> list[int]:
    """The numbers of threads, without repetitions."""
    return [n for n, _ in itertools.groupby(seen)]


def test_an_idle_machine_keeps_all_threads(machine):
    with SparingThreads() as threads:
        assert changes(work(threads, machine, 200)) == [4]


def test_a_burst_of_one_window_changes_nothing(machine):
    with SparingThreads() as threads:
        for _ in range(5):
            machine.busy = 2.0
            assert changes(work(threads, machine, threads.WINDOW)) == [4]
            machine.busy = 0.0
            assert changes(work(threads, machine, threads.WINDOW)) == [4]


@pytest.mark.parametrize(("busy", "left"), [(0.3, 4), (0.4, 3), (1.0, 3), (1.5, 2), (3.0, 1), (3.8, 1)])
def test_threads_without_a_core_rest(machine, busy, left):
    machine.busy = busy
    with SparingThreads() as threads:
        seen = work(threads, machine, 30)
        assert changes(seen) == [4, left][: 1 + (left < 4)]
    assert torch.get_num_threads() == 4, "restored"


def test_all_threads_are_tried_again_and_stay_when_the_cores_are_free(machine, monkeypatch):
    levels = []
    monkeypatch.setattr(training.threads.LOG, "log", lambda level, *_: levels.append(level))
    with SparingThreads() as threads:
        machine.busy = 1.0
        seen = work(threads, machine, 4 * threads.REST * threads.WINDOW)
        assert changes(seen) == [4, 3] * 4, "every 40 seconds"
        assert 0 < seen[20:].count(4) <= 6, "a trial takes half a second"
        machine.busy = 0.0
        work(threads, machine, threads.REST * threads.WINDOW)
        assert changes(work(threads, machine, 200)) == [4]
        machine.busy = 2.0
        assert changes(work(threads, machine, 3 * threads.WINDOW)) == [4, 2]
    assert levels == [logging.INFO, logging.DEBUG], "said once, and kept in log.txt"


def test_a_trial_sees_how_many_cores_are_free_now(machine):
    with SparingThreads() as threads:
        machine.busy = 1.0
        work(threads, machine, 20)
        machine.busy = 2.0
        assert changes(work(threads, machine, threads.REST * threads.WINDOW + 20))[-2:] == [4, 2]
        machine.busy = 1.0
        assert changes(work(threads, machine, threads.REST * threads.WINDOW + 20))[-2:] == [4, 3]


@pytest.mark.parametrize("serial", [0.1, 0.3, 0.6, 1.0])
def test_work_that_is_not_parallel_keeps_its_threads(machine, serial):
    """The other threads sleep meanwhile, as if they had no core. But fewer threads are not faster."""
    machine.serial = serial
    with SparingThreads() as threads:
        seen = work(threads, machine, 400)
    assert seen.count(4) > 0.9 * len(seen) and seen[-1] == 4


def test_long_steps(machine):
    """A step that takes longer than a window is a window."""
    steps = 40
    machine.busy = 1.0
    with SparingThreads() as threads:
        threads.WINDOW = threads.TRIAL = 0.01
        seen = work(threads, machine, steps)
        assert changes(seen)[:4] == [4, 3, 4, 3] and seen.count(4) < 0.1 * len(seen)


@pytest.mark.parametrize("is_fixed", [True, False])
def test_fixed(machine, is_fixed):
    machine.busy = 2.0
    with SparingThreads(is_fixed=is_fixed) as threads:
        assert (changes(work(threads, machine, 100)) == [4]) == is_fixed


def test_a_given_number_is_set_and_the_former_one_restored(machine):
    with SparingThreads(3, is_fixed=True):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 4


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
        time.sleep(0.1 if torch.get_num_threads() == 2 else 0.0)  # two threads are slow, as beside another program
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
        assert seen == used and torch.get_num_threads() == before, "restored at the end"
    finally:
        torch.set_num_threads(threads)
    log = FinishedRun(tmp_path / "run").log
    said = "so 1 of 2 threads work for now. Results may differ by rounding; --threads 2 keeps"
    assert log.count(said) == (1 in used)


def test_a_run_on_a_gpu_or_of_several_processes_keeps_its_threads(monkeypatch):
    """Processes wait for each other without using a core, so a missing core says nothing there."""
    torch.set_num_threads(2)
    try:
        for device, processes, fixed in (("cpu", 1, False), ("cpu", 2, True), ("mps", 1, True)):
            monkeypatch.setattr(training.steps, "count_processes", lambda processes=processes: processes)
            state = SimpleNamespace(device=torch.device(device))
            assert StepRunner(state, {}, VanillaOptions(), None).threads._is_fixed == fixed
        monkeypatch.undo()
        compiled = StepRunner(SimpleNamespace(device=torch.device("cpu")), {}, VanillaOptions(compile=True), None)
        assert compiled.threads._is_fixed, "each number of threads would be compiled"
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
