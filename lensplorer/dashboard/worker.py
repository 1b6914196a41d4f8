"""One thread per page: commands in the order in which they came, then one picture of the newest state.

While a picture is being computed, commands wait; then all that have come are applied before the next picture, so that fast typing ends in
the right place and skips pictures, not keys. A frame budget keeps the page moving while a long queue is worked off.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds that a page may keep the others from working. What a page does in a turn takes a second or two, and minutes only where it loads an SAE
#: over a slow network or does not end at all; a person who waits longer than this takes the server for dead.
LONGEST = 60.0
FRAME = 0.05  #: seconds of commands before a picture is made in between
REST = 0.3  #: seconds without a command before what nobody waits for is done
OVERDUE = 3.0  #: seconds after which it is done though commands keep coming


class Turns:
    """One page at work at a time: more would take Python from each other, and all of them longer than one after another.

    A page that keeps its turn for more than ``LONGEST`` seconds while others wait is let go: it is named in the log, with what its thread is doing,
    and the others go on without it. Its thread cannot be ended; if it comes to an end after all, the page goes on too.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: int | None = None  # the thread at work
        self._since = 0.0
        self.let_go: set[int] = set()

    def __enter__(self) -> None:
        with self._changed:
            while self._holder is not None:
                left = self._since + LONGEST - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                else:
                    self._let_go(self._holder)
            self._holder, self._since = threading.get_ident(), time.monotonic()

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self.let_go.discard(threading.get_ident())
            if self._holder == threading.get_ident():
                self._holder = None
                self._changed.notify()

    def _let_go(self, thread: int) -> None:
        self._holder = None
        self.let_go.add(thread)
        name = next((each.name for each in threading.enumerate() if each.ident == thread), "a thread that has ended")
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        logger.error("%s has kept all pages waiting for %.0f s and is let go; a restart ends it. It is at:\n%s", name, LONGEST, stack)


TURNS = Turns()


class Worker:
    """Runs ``draw`` after the functions put in its queue.

    Args:
        draw: makes the picture of the newest state; called with the time (``perf_counter``) at which the commands before it started.
        finish: draws what may come later; called after ``draw`` when nothing is waiting.
        rest: called after ``REST`` seconds without a command, after ``OVERDUE`` seconds of commands, and when the worker stops.
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

    @property
    def is_stuck(self) -> bool:
        """Whether what it is doing takes so long that the other pages no longer wait for it."""
        return self._thread.ident in TURNS.let_go

    def stop(self) -> None:
        """End the thread after what it is doing now."""
        self._queue.put(None)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _work(self) -> None:
        waiting_since: float | None = None  # what may rest, waits
        while True:
            try:
                function = self._queue.get(timeout=None if waiting_since is None else REST)
            except queue.Empty:
                self._guarded(self._rest)
                waiting_since = None
                continue
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
            waiting_since = waiting_since or started
            if time.perf_counter() - waiting_since > OVERDUE:
                self._guarded(self._rest)
                waiting_since = None

    @staticmethod
    def _guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:  # the thread must live on: a page that stops answering says less than a log
            logger.exception("A command of the page failed")
