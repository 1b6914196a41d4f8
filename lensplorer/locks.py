"""One run at a time per model, first come first served.

Sessions, the server and background work share a model; a plain ``threading.Lock`` lets one busy thread take it again and again while the
others wait.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary

_held = threading.local()


def holds_a_lock() -> bool:
    """Whether this thread is inside of a ``FairLock``. It must not wait for other work then, which may need the same lock."""
    return getattr(_held, "count", 0) > 0


class FairLock:
    """A re-entrant lock that serves waiting threads in the order in which they came."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> FairLock:
        self._take()
        _held.count = getattr(_held, "count", 0) + 1
        return self

    def __exit__(self, *error: Any) -> None:
        _held.count -= 1
        with self._mutex:
            self._depth -= 1
            if self._depth == 0:
                self._pass_on()

    def _take(self) -> None:
        me = threading.get_ident()
        with self._mutex:
            if self._owner == me:
                self._depth += 1
                return
            if self._owner is None:
                self._owner, self._depth = me, 1
                return
            turn = threading.Event()
            turn.owner = me  # type: ignore[attr-defined]
            self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:  # an interrupt while waiting: give the place up, or pass the lock on if it has just come
            with self._mutex:
                if turn.is_set():
                    self._pass_on()
                else:
                    self._waiting.remove(turn)
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            turn = self._waiting.popleft()
            self._owner, self._depth = turn.owner, 1  # type: ignore[attr-defined]
            turn.set()
        else:
            self._owner = None


_locks: WeakKeyDictionary[Any, FairLock] = WeakKeyDictionary()
_locks_mutex = threading.Lock()


def model_lock(model: Any) -> FairLock:
    """The lock of this model; the same for every caller."""
    with _locks_mutex:
        return _locks.setdefault(model, FairLock())
