"""Threads that compute a part of a batch each: what they exchange, and what happens after an error."""

import time

import pytest
import torch

from system.parts import Team, average_over_parts, count_parts, gather_parts, once, part
from system.processes import draw_shard, local_shard


@pytest.fixture
def team():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with Team(2) as team:
        yield team
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_each_thread_has_its_part(team):
    batch = torch.arange(6)
    assert team.run(lambda: (part(), count_parts(), local_shard(batch).tolist(), torch.get_num_threads())) == [
        (0, 2, [0, 1, 2], 1), (1, 2, [3, 4, 5], 1)
    ]  # fmt: skip
    assert (part(), count_parts(), torch.get_num_threads()) == (0, 1, 1)
    with team.all_threads():
        assert torch.get_num_threads() == 2
    assert torch.equal(local_shard(batch), batch)


def test_draws_are_those_of_one_thread(team):
    """Also if part 0 is late, and for many draws one after the other."""

    def draw() -> torch.Tensor:
        time.sleep(0.01 * (part() == 0))
        return torch.cat([draw_shard(torch.rand, 3) for _ in range(50)])

    torch.manual_seed(0)
    found = [shard.view(50, 3) for shard in team.run(draw)]
    torch.manual_seed(0)
    assert torch.equal(torch.cat(found, dim=1), torch.stack([torch.rand(6) for _ in range(50)]))


def test_values_are_exchanged(team):
    assert team.run(lambda: once(part)) == [0, 0]
    assert [batch.tolist() for batch in team.run(lambda: gather_parts(torch.tensor([float(part())])))] == [[0, 1]] * 2
    means = team.run(lambda: average_over_parts([torch.tensor(1.0 + 2 * part()), torch.tensor(-4.0 * part())]))
    assert [[mean.item() for mean in one] for one in means] == [[2, -2]] * 2


@pytest.mark.faults
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_one_thread_ends_the_others(team, broken):
    def fail() -> int:
        if part() == broken:
            raise MemoryError(f"in part {broken}")
        return once(lambda: 1)

    with pytest.raises(MemoryError, match=f"in part {broken}"):
        team.run(fail)
    assert team.run(lambda: once(lambda: 2)) == [2, 2], "the team works again"
