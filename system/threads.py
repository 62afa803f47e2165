"""Ordered work in threads: sampling and translation, and files that are read and written beside them."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 1,
    ahead: int = 1,
    initializer: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Yield function(item) in the order of the items; at most `workers + ahead` items are in progress.

    An exception is raised at the item that caused it. `initializer` runs once in each thread.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        pending = deque(pool.submit(function, item) for item in itertools.islice(iterator, workers + ahead))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(iterator, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def prefetch(items: Iterable[Item], ahead: int = 4) -> Iterator[Item]:
    """Yield the items, computed in one thread, at most `ahead` before they are needed."""
    iterator = iter(items)
    end: Any = object()
    for item in map_in_threads(lambda _: next(iterator, end), itertools.count(), 1, ahead - 1):
        if item is end:
            return
        yield item
