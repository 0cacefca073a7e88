"""Work done ahead of its use by threads, in order: what comes out never depends on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[Result]:
    """`map(function, items)`, computed by threads while the consumer does something else.

    Items are taken in the consumer's thread, so a reader need not be safe for several. An error comes out in its turn.

    Args:
        threads: 0 computes in the consumer's thread, when asked.
        ahead: results and items in memory at most, besides the consumer's own.
    """
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
