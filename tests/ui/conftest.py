"""A real browser (the fixture ``browser`` of ``tests.conftest``) on a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # ms: a machine under load is slow, not wrong


def find_browser() -> str | None:
    """Path of a Chromium: ``LENSPLORER_BROWSER``, else the first on the PATH."""
    named = os.environ.get("LENSPLORER_BROWSER")
    return named or next((path for path in map(shutil.which, _NAMES) if path), None)


class Server:
    """``lensplorer explore`` in a process of its own, on a free port of this machine."""

    def __init__(self, *arguments: str, data: Path | None = None) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if data is not None:
            environment["XDG_DATA_HOME"] = str(data)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lensplorer.cli", "explore", "--port", "0", "--no-show", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        threading.Thread(target=self._read_log, daemon=True).start()
        line = self.process.stdout.readline()  # type: ignore[union-attr]  # printed once it serves
        found = re.search(r"http://\S+", line)
        if not found:
            raise RuntimeError("The server did not start:\n" + "".join(self.log))
        self.url = found[0]

    def _read_log(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.log.append(line)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Tab:
    """One page, and everything it complained of."""

    def __init__(self, browser: Any, url: str, *, query: str = "", width: int = 1440, height: int = 900) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self._note_host(request.url))
        self.page.on("websocket", lambda socket: self._note_host(socket.url))
        self.page.goto(url + query)

    def _note_host(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.hosts.add(urlsplit(url).hostname or url)

    def ready(self) -> Tab:
        self.page.locator('.lensplorer[data-ready="true"]').wait_for()
        self.settle()
        return self

    def settle(self) -> Tab:
        """Until the server has answered everything that was sent, the text has been run, and the page shows it."""
        self.page.wait_for_function(
            """() => { const shell = find(document, '.lensplorer');
                       return shell && Number(shell.dataset.acknowledged) >= Number(shell.dataset.sent ?? 0) && shell.dataset.waiting !== 'true';
                       function find(root, selector) {
                         for (const e of root.querySelectorAll('*')) {
                           if (e.matches(selector)) return e;
                           const inner = e.shadowRoot && find(e.shadowRoot, selector);
                           if (inner) return inner;
                         }
                         return null;
                       } }"""
        )
        return self

    def press(self, *keys: str) -> Tab:
        for key in keys:
            self.page.keyboard.press(key)
        return self.settle()

    def panel(self, name: str) -> Any:
        """A panel that is on screen and drawn, opened if it was closed."""
        found = self.page.locator(f"[data-panel='{name}']")
        if not found.count():
            self.press("v")
            dialog = self.page.get_by_role("dialog", name="Panels")
            dialog.locator(f"input[value='{name}']").check()
            self.press("Escape")
        found.scroll_into_view_if_needed()
        self.page.locator(f"[data-panel='{name}'][data-state]").wait_for()
        return found

    def control(self, panel: str, name: str) -> Any:
        return self.page.locator(f"[data-panel='{panel}'] .controls [name='{name}']")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    @property
    def ids(self) -> list[int]:
        return [int(value) for value in self.page.locator(".token").evaluate_all("all => all.map(each => each.dataset.id)")]

    @property
    def view(self) -> str:
        return self.page.locator('.tabs [aria-selected="true"]').get_attribute("data-view")

    @property
    def cursor(self) -> int | None:
        ringed = self.page.locator(".token.cursor")
        return int(ringed.get_attribute("data-position")) if ringed.count() else None

    @property
    def selected(self) -> int:
        return int(self.page.locator(".candidates .selected").get_attribute("data-index"))

    def close(self) -> None:
        self.context.close()


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server("--seed", "1", data=tmp_path_factory.mktemp("data"))
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Tab]:
    """A fresh page of the built-in model. Whatever a test did, the page complained of nothing and asked no other host."""
    opened = Tab(browser, server.url).ready()
    yield opened
    opened.close()
    assert opened.complaints == []
    assert opened.hosts == {"127.0.0.1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
