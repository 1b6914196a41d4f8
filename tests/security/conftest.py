"""The three ways to serve a page, each in a process of its own, and a browser that takes another site's name for this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ui.conftest import FLAGS, ROOT, find_browser

EVIL = "evil.example"
DOORS = ("explore", "serve")  #: with the Gate in front; ``panel serve`` has none


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Door:
    """A server in a process of its own: ``explore``, ``serve`` or ``panel`` with some arguments, once it answers."""

    def __init__(self, kind: str, *arguments: str, data: Path, **environment: str) -> None:
        self.kind, self.port = kind, free_port()
        start = (
            ["panel", "serve", "dashboards/explorer.py", "--port", str(self.port), *arguments]
            if kind == "panel"
            else ["lensplorer.cli", kind, "--port", str(self.port), *arguments]
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", *start],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(data), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self.said: list[str] = []
        streams = ((self.process.stderr, self.log), (self.process.stdout, self.said))
        self._readers = [threading.Thread(target=self._read, args=each, daemon=True) for each in streams]
        for reader in self._readers:
            reader.start()
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line)

    def _wait(self) -> None:
        for _ in range(600):
            assert self.process.poll() is None, "".join(self.log)
            try:
                httpx.get(f"{self.url}/static/js/bokeh.min.js", timeout=120)
                return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("The server does not answer.")

    def get(self, path: str = "/explorer", **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, **options)

    def session_token(self, **headers: Any) -> str:
        """The token of a page that is opened under these headers."""
        return re.search(r'"token":"([^"]+)"', self.get(headers=headers).text)[1]  # type: ignore[index]

    def stop(self) -> str:
        """Interrupt it, as ctrl+c does; what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            for reader in self._readers:
                reader.join(60)
        return "".join(self.log)


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """``lensplorer explore`` and ``lensplorer serve`` for this machine. Whatever was sent to them, neither failed."""
    served = Door(request.param, data=tmp_path_factory.mktemp("data"))
    yield served
    log = served.stop()
    assert served.process.returncode == 0 and "Traceback" not in log, log


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """``panel serve dashboards/explorer.py``."""
    served = Door("panel", data=tmp_path_factory.mktemp("data"))
    yield served
    served.stop()


@pytest.fixture(scope="module")
def fooled(browser: Any) -> Iterator[Any]:
    """A browser for which the name of another site stands for this machine."""
    launched = browser.browser_type.launch(executable_path=find_browser(), args=[*FLAGS, f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"])
    yield launched
    launched.close()
