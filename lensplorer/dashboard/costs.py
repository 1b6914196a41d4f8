"""What a panel will cost, whether the person has agreed to it, and the word that stops it while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lensplorer.errors import Cancelled
from lensplorer.watching import watching

_SLOWEST_GUESS = 0.02  # seconds a token, before anything was measured
_NEWS = 0.25  # seconds between two words about progress


@dataclass(frozen=True)
class Running:
    """What is running, since when, about how long it takes, and how many runs of the model it has made."""

    panel: str
    seconds: float
    expected: float
    runs: int


class Costs:
    """Measured times of this page's model.

    Args:
        interrupted: whether a command is waiting, for which a panel gives way.
    """

    def __init__(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.interrupted = interrupted
        self.stop = threading.Event()
        self.tell: Callable[[Running | None], None] = lambda running: None
        self._per_token: float | None = None
        self._measured: dict[Hashable, float] = {}  # seconds over the guess
        self._granted: set[Hashable] = set()

    def forget(self) -> None:
        """Another model: nothing measured counts."""
        self._per_token = None
        self._measured.clear()
        self._granted.clear()

    def ran(self, seconds: float, tokens: int) -> None:
        """A whole prompt ran in this time. The quickest run counts: others waited for something."""
        if tokens > 0:
            pace = seconds / tokens
            self._per_token = pace if self._per_token is None else min(self._per_token, pace)

    def forward(self, tokens: int) -> float:
        """About how long one run over so many tokens takes, in seconds."""
        return (self._per_token if self._per_token is not None else _SLOWEST_GUESS) * tokens

    def expected(self, key: Hashable, guess: float) -> float:
        """The guess, corrected by how wrong it was the last time."""
        return guess * self._measured.get(key, 1.0)

    def learn(self, key: Hashable, guess: float, seconds: float) -> None:
        if guess > 0:
            self._measured[key] = seconds / guess

    def grant(self, key: Hashable) -> None:
        """The person has said: run it."""
        self._granted.add(key)

    def is_granted(self, key: Hashable) -> bool:
        return key in self._granted

    def revoke(self) -> None:
        """Another prompt, another question: ask again."""
        self._granted.clear()

    @contextmanager
    def running(self, panel: str, expected: float) -> Iterator[None]:
        """While a panel is built: it stops between two runs of the model when a command waits or the person says stop, and tells how far it is.

        Raises:
            Cancelled: it was stopped.
        """
        self.stop.clear()
        started = last = time.perf_counter()
        runs = 0
        told = False

        def tick() -> None:
            nonlocal last, runs, told
            if self.stop.is_set() or self.interrupted():
                raise Cancelled("Stopped.")
            runs += 1
            now = time.perf_counter()
            if now - last > _NEWS:
                last, told = now, True
                self.tell(Running(panel, now - started, expected, runs))

        try:
            with watching(tick):
                yield
        finally:
            if told:
                self.tell(None)


def key_of(panel: str, settings: dict[str, Any]) -> Hashable:
    """The same panel with the same settings."""
    return panel, tuple(sorted(settings.items()))
