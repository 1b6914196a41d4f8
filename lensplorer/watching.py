"""Long work that can be watched and stopped.

Every analysis that needs more than one run of the model makes them through ``lensplorer.running.run_model``. It calls ``tick`` before each run, so
whoever started the work can count the runs, or end it by raising ``Cancelled``, without any analysis knowing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_watcher: ContextVar[Callable[[], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Callable[[], None]) -> Iterator[None]:
    """While this is open, ``watcher`` is called before each run of a model in this thread. What it raises, e.g. ``Cancelled``, ends the work.

    >>> import lensplorer as lp
    >>> model, runs = lp.load_model("storyworld"), []
    >>> with watching(lambda: runs.append(1)):
    ...     trace = lp.run_trace(model, "Once upon a time")
    >>> len(runs)
    1
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tick() -> None:
    """A run of a model is about to start. The watcher may end the work here, or let another thread's go first, as the server's queue does.

    So nothing that is shared may be half done here, unless a ``FairLock`` is held over it: the queue waits for nobody then. Any other lock, that of
    a ``cached_property`` included, must not be held.
    """
    watcher = _watcher.get()
    if watcher is not None:
        watcher()
