"""One thread per page: commands in the order in which they came, then one picture of the newest state.

While a picture is being computed, commands wait; then all that have come are applied before the next picture, so that fast typing ends in
the right place and skips pictures, not keys. A frame budget keeps the page moving while a long queue is worked off.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Pages at work at a time. More would take Python from each other, and all of them longer than one after another.
TURNS = threading.Semaphore(1)
FRAME = 0.05  #: seconds of commands before a picture is made in between
REST = 0.1  #: seconds without a command before what nobody waits for is done; less than between two steps of a play


class Worker:
    """Runs ``draw`` after the functions put in its queue.

    Args:
        draw: makes the picture of the newest state; called with the time (``perf_counter``) at which the commands before it started.
        finish: draws what may come later; called after ``draw`` when nothing is waiting.
        rest: called after ``REST`` seconds without a command, and when the worker stops.
    """

    def __init__(self, draw: Callable[[float], None], finish: Callable[[], None] = lambda: None, rest: Callable[[], None] = lambda: None) -> None:
        self._draw, self._finish, self._rest = draw, finish, rest
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="lensplorer-page", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], None]) -> None:
        """Have ``function`` run after those before it; returns at once."""
        self._queue.put(function)

    def is_waiting(self) -> bool:
        """Whether something was put in since the last picture: what may come later gives way to it."""
        return not self._queue.empty()

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        self._queue.put(None)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _work(self) -> None:
        rested = True
        while True:
            try:
                function = self._queue.get(timeout=None if rested else REST)
            except queue.Empty:
                self._guarded(self._rest)
                rested = True
                continue
            rested = False
            started = time.perf_counter()
            with TURNS:
                while function is not None:
                    self._guarded(function)
                    if time.perf_counter() - started > FRAME:
                        break
                    try:
                        function = self._queue.get_nowait()
                    except queue.Empty:
                        break
                if function is not None:
                    self._guarded(lambda: self._draw(started))  # noqa: B023 called at once
            if function is None:
                self._guarded(self._rest)
                return
            if self._queue.empty():
                self._guarded(self._finish)

    @staticmethod
    def _guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:  # the thread must live on: a page that stops answering says less than a log
            logger.exception("A command of the page failed")
