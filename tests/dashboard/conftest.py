"""An explorer on a tiny model, without a browser: commands in, plain data out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lensplorer.dashboard.explorer import Explorer
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.snapshot import snapshot


class Driver:
    """Sends commands as the browser does and reads the page as plain data."""

    def __init__(self, options: Options, model: Any = None, load: Callable[..., Any] | None = None) -> None:
        self.queue: list[Callable[[], None]] = []
        self.explorer = Explorer(options, load=load or (lambda name: model), later=self.queue.append)
        self.seq = 0
        if model is not None:
            self.explorer.use(model)

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.seq += 1
        self.explorer.perform({"do": command, "seq": self.seq, **arguments})
        return self.picture

    @property
    def picture(self) -> dict[str, Any]:
        return snapshot(self.explorer)

    @property
    def session(self) -> Any:
        return self.explorer.session

    @property
    def message(self) -> str:
        return (self.explorer.state.message or {"text": ""})["text"]

    def wait(self) -> None:
        """Until the loading thread has handed its answer back, and that has been applied."""
        import threading

        for thread in threading.enumerate():
            if thread.name == "lensplorer-load":
                thread.join(60)
        while self.queue:
            self.queue.pop(0)()

    def wait_for_saes(self) -> None:
        """Until every SAE asked for is there, or said why not."""
        import threading

        for thread in threading.enumerate():
            if thread.name in ("lensplorer-load-sae", "lensplorer-search"):
                thread.join(60)
        while self.queue:
            self.queue.pop(0)()


@pytest.fixture
def drive(tiny_model: Callable[..., Any]) -> Driver:
    return Driver(Options(prompt="the cat sat on"), tiny_model("gpt2"))
