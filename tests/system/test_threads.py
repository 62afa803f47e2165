"""Ordered work in threads: the order, the number of items ahead, errors, and the end."""

import threading
import time

import pytest

from system.threads import map_in_threads, prefetch


def test_prefetch():
    """The items stay in order, few are computed ahead, an error comes at its place, and closing ends the work."""
    computed = []

    def items():
        for i in range(100):
            computed.append(i)
            yield i
        raise ValueError("at the end")

    some = prefetch(items(), ahead=3)
    assert [next(some) for _ in range(10)] == list(range(10)) and len(computed) <= 14
    some.close()
    assert len(computed) <= 14
    seen = []
    with pytest.raises(ValueError, match="at the end"):
        for item in prefetch(items()):
            seen.append(item)
    assert seen == list(range(100))


@pytest.mark.parametrize("workers", [1, 3])
def test_map_in_threads(workers):
    """The results are in order although later items finish first, `workers` items run at once, and an error comes at
    its place."""
    taken, prepared, together = [], [], threading.Barrier(workers, timeout=30)

    def items():
        for i in range(30):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        if i < workers:
            together.wait()  # all workers must arrive here, else this raises an error
        time.sleep(0.01 * (i % 3 == 0))
        if i == 20:
            raise ValueError("at 20")
        return -i

    results = map_in_threads(work, items(), workers, initializer=lambda: prepared.append(threading.get_ident()))
    for i in range(20):
        assert next(results) == -i and len(taken) == min(30, i + workers + 1)
    with pytest.raises(ValueError, match="at 20"):
        next(results)
    assert len(set(prepared)) == len(prepared) == workers
    assert list(map_in_threads(str, [], workers)) == [] and list(map_in_threads(str, [1], workers)) == ["1"]


def test_the_number_of_items_ahead_can_be_set():
    taken = []
    results = map_in_threads(str, (taken.append(i) or i for i in range(30)), workers=2, ahead=5)
    assert next(results) == "0" and len(taken) == 7
    results.close()
    assert len(taken) == 7
