"""Several processes as torchrun starts them, by its environment variables; one process alone."""

import pytest
import torch
import torch.distributed as dist

from system import processes
from system.processes import (
    average_over_processes,
    broadcast,
    describe_launch,
    gather_batch,
    join_processes,
    local_main_first,
    local_rank,
    local_shard,
    main_process_only,
    max_over_processes,
    rank,
    restarts,
)
from utils import UserError

CPU = torch.device("cpu")


@pytest.fixture
def launched(monkeypatch):
    """Pretend that torchrun started this process as number 3 of 4, number 1 on its machine, after two restarts."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(processes, "count_processes", lambda: 4)
    variables = {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
    for name, value in {**variables, "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)


def test_numbers_of_a_process(launched):
    assert (rank(), local_rank(), restarts()) == (3, 1, 2)
    assert describe_launch() == "torchrun --nnodes=2 --rdzv... --nproc_per_node=2"


def test_without_torchrun_its_variables_are_ignored(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "3")
    assert (rank(), local_rank(), restarts(), processes.count_processes()) == (0, 0, 0, 1)


def test_a_launch_on_one_machine(launched, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert describe_launch() == "torchrun --nproc_per_node=4"


def test_a_batch_that_cannot_be_shared_evenly(launched):
    with pytest.raises(UserError, match="--batch_size: 10 images cannot be shared by 4 processes; use a multiple"):
        join_processes(CPU, 10)


def test_each_process_gets_its_part_of_a_batch(launched):
    assert local_shard(torch.arange(8)).tolist() == [6, 7]


def test_only_the_main_process_writes(launched, monkeypatch):
    written = []
    write = main_process_only(lambda value: written.append(value) or value)
    assert write(1) is None and written == []
    monkeypatch.setenv("RANK", "0")
    assert write(2) == 2 and written == [2]


@pytest.mark.parametrize("number", ["0", "1"])
def test_one_process_per_machine_works_before_the_others(launched, monkeypatch, number):
    events = []
    monkeypatch.setenv("LOCAL_RANK", number)
    monkeypatch.setattr(dist, "barrier", lambda: events.append("barrier"))
    assert local_main_first(lambda: events.append("make") or "made") == "made"
    assert events == (["make", "barrier"] if number == "0" else ["barrier", "make"])


def test_one_process_alone_communicates_with_nobody():
    batch, value = torch.rand(4, 2), {"a": 1}
    join_processes(CPU, 7)
    assert not dist.is_initialized()
    assert torch.equal(local_shard(batch), batch) and gather_batch(batch) is batch and broadcast(value) is value
    assert max_over_processes(5, CPU) == 5 and local_main_first(lambda: "made") == "made"
    average_over_processes([batch])
    assert main_process_only(lambda: "written")() == "written"
