"""What is made by threads before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
AHEAD = 4  # of each thread: what it has made or is to make before it is asked for


def made_ahead(make: Callable[[K], V], keys: Iterable[K], threads: int) -> Iterator[V]:
    """What `make` makes of each key, in their order.

    Args:
        make: a pure function; an error of it is raised where its result is asked for.
        keys: of what is to be made.
        threads: how many make things ahead; with none each is made when it is asked for.
    """
    if not threads:
        yield from map(make, keys)
        return
    waiting: deque[Future[V]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for key in keys:
                waiting.append(pool.submit(make, key))
                if len(waiting) > AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
