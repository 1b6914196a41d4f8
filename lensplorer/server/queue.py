"""One run at a time, first come first served, and an honest no when too many wait."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lensplorer.errors import LensplorerError

T = TypeVar("T")


class Busy(LensplorerError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RunQueue:
    """Runs functions on one thread, in the order in which they came.

    >>> queue = RunQueue(2)
    >>> ThreadPoolExecutor().submit(asyncio.run, queue.run(lambda: 6 * 7)).result()  # as asyncio.run, where a loop runs already
    42

    Args:
        size: how many may wait beside the one that runs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lensplorer-run")
        self._mutex = threading.Lock()
        self._inside = 0  # waiting and running
        self._seconds = 0.1  # of a run, a running mean

    async def run(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, once it has had its turn. A caller that is cancelled while it waits gives its place up.

        Raises:
            Busy: ``size`` callers wait already.
        """
        with self._mutex:
            if self._inside > self.size:
                seconds = max(1, math.ceil(self._seconds * self._inside))
                raise Busy(f"{self.size} requests are waiting already: try again in {seconds} s.", seconds)
            self._inside += 1
        future = self._thread.submit(self._timed, function)
        future.add_done_callback(self._left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _timed(self, function: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return function()
        finally:
            self._seconds += 0.1 * (time.perf_counter() - started - self._seconds)

    def _left(self, future: Future[T]) -> None:
        with self._mutex:
            self._inside -= 1
