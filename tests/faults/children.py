"""What tests have other processes do. They come from a server that has one thread: a fork of the tests' own process, which has many, may hang."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from lensplorer.dashboard import keeping
from lensplorer.errors import SessionError
from lensplorer.sessionfile import write_session

_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload([__name__])


def in_a_child(work: Callable[..., Any], *arguments: Any, fresh: bool = False) -> BaseProcess:
    """Run a function of this module in a process of its own; ``fresh``: which imports all it needs, where it computes."""
    context = multiprocessing.get_context("spawn") if fresh else _CHILDREN
    child = context.Process(target=work, args=arguments, daemon=True)
    child.start()
    return child


def ended_well(child: BaseProcess) -> bool:
    """Whether it ended by itself and raised nothing. Waits for its end."""
    child.join(120)
    return child.exitcode == 0


def keep_saving(path: Path, after: int) -> None:
    """Save files with the numbers that follow, until somebody ends it."""
    for following in range(after + 1, after + 10_000):
        write_session(path, {"number": following, "text": "x" * 200_000})


def save_forty_times(path: Path, who: str) -> None:
    for _ in range(40):
        write_session(path, {"who": who, "text": who * 30_000})


def save_on_a_full_disk(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    with pytest.raises(SessionError, match="cannot be written"):
        write_session(path, {"number": 2, "text": "x" * 200_000})


def go_on_with_a_full_disk(model: Path, home: Path, key: str) -> None:
    """A page under this data folder saves and autosaves in vain, and goes on."""
    from lensplorer.models import load_model
    from tests.faults.conftest import walked

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_DATA_HOME", str(home))
        page = walked(load_model(str(model)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        page("save")
        assert "cannot be written" in page.message
        with pytest.raises(SessionError):
            keeping.autosave(page.explorer, key)
        page("pop")
        assert page.message == ""


def hold(home: Path, key: str, held: Any) -> None:
    """Hold a tab's key until somebody ends it; ``held`` is set once that is so."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_DATA_HOME", str(home))
        holder = keeping.hold(key)
        if holder is not None:
            held.set()
        time.sleep(120)


def event() -> Any:
    """An event that a child can set."""
    return _CHILDREN.Event()
