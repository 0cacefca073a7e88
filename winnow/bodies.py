"""Memory for the bodies of answers: so much of it at a time, however many threads fetch."""

import threading

from winnow.addresses import time_left

LARGE_BYTES = 256 * 1024
LARGE_BODIES_BYTES = 30_000_000
"""Of all bodies above LARGE_BYTES that a worker holds at a time: with 32 threads and 20 MB each it would be over a gigabyte."""


class Room:
    """Memory for large bodies: taken before they are read, given back by who has done with them. First come, first served."""

    def __init__(self) -> None:
        self._free = LARGE_BODIES_BYTES
        self._given_back = threading.Condition()
        self._door = threading.Lock()

    def take(self, size: int, deadline: float, *, held: int = 0) -> None:
        """Waits until there is room for so many bytes. Raises TimeoutError if there is none until then.

        Args:
            held: of which the body has so many already. One that grows does not wait behind those that have not begun.
        """
        size = min(size, LARGE_BODIES_BYTES) - min(held, LARGE_BODIES_BYTES)
        if held:
            self._wait(size, deadline)
            return
        if not self._door.acquire(timeout=time_left(deadline)):  # small ones would slip past a larger one for ever
            raise TimeoutError
        try:
            self._wait(size, deadline)
        finally:
            self._door.release()

    def _wait(self, size: int, deadline: float) -> None:
        with self._given_back:
            if not self._given_back.wait_for(lambda: self._free >= size, time_left(deadline)):
                raise TimeoutError
            self._free -= size

    def give_back(self, size: int) -> None:
        """For every body that was handed out, whatever its size."""
        if size > LARGE_BYTES:
            self.shrink(size, 0)

    def shrink(self, taken: int, left: int) -> None:
        """Frees what was taken but for so many bytes."""
        with self._given_back:
            self._free += min(taken, LARGE_BODIES_BYTES) - min(left, LARGE_BODIES_BYTES)
            self._given_back.notify_all()
