"""A real server: ``lensplorer serve`` in a process of its own, API and dashboard, as a person starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lensplorer.cli import app as cli

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-that-nobody-can-guess"


class Process:
    """``lensplorer serve`` with some arguments, on a free port."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lensplorer.cli", "serve", "--port", "0", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        found = re.search(r"http://\S+:(\d+)", self.process.stdout.readline())
        if not found:
            raise RuntimeError(f"The server did not start:\n{self.process.stderr.read()}")
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        for _ in range(600):
            try:
                httpx.get(f"{self.url}/nothing", timeout=60)
                return
            except httpx.TransportError:
                time.sleep(0.05)  # printed just before it listens
        raise RuntimeError("The server does not answer.")

    def stop(self) -> str:
        """Interrupt it, as ctrl+c does; what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def live():
    process = Process("--address", "0.0.0.0", "--token", TOKEN)
    yield process
    log = process.stop()
    assert process.process.returncode == 0 and "Traceback" not in log, log


def test_api_and_dashboard_are_one_process_behind_one_token(live):
    with httpx.Client(base_url=live.url, timeout=120) as client:
        for path in ("/api/model/status", "/explorer", "/docs", "/static/js/bokeh.min.js"):
            assert client.get(path).status_code == 401, path
        assert client.get("/explorer", params={"token": TOKEN}).status_code == 303
        page = client.get("/explorer")
        assert page.status_code == 200 and "Set-Cookie" not in page.headers
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.text)
        for script in re.findall(r'<script[^>]* src="([^"]+)"', page.text):
            assert client.get(script).status_code == 200, script
        assert client.post("/api/step", json={"prompt": "Once upon a"}).status_code == 200  # with the cookie
        assert client.get("/", follow_redirects=True).status_code == 200
        token = re.search(r'"token":"([^"]+)"', page.text)[1]
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    socket = f"ws://127.0.0.1:{live.port}/explorer/ws"
    with connect(socket, subprotocols=["bokeh", token], additional_headers=cookie, origin=live.url) as websocket:
        assert json.loads(websocket.recv(60))["msgtype"] == "ACK"
    for subprotocols, headers, origin in (
        (["bokeh", token], {}, live.url),  # no token
        (["bokeh", token], cookie, "http://evil.com"),  # a page of another site
        (["bokeh", token[:-6] + "AAAAAA"], cookie, live.url),  # a forged session, which could name a model
        (["bokeh", "x"], cookie, live.url),
        (["bokeh"], cookie, live.url),
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(socket, subprotocols=subprotocols, additional_headers=headers, origin=origin)
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--address", "0.0.0.0", "--token", "short"], "16", 1),
        (["--model", "storywrold"], "storyworld", 1),
        (["--allow-model", "./model"], "is a path", 1),
        (["--page", "/nowhere/index.html"], "/nowhere/index.html", 1),
        (["--address", "203.0.113.7", "--token", TOKEN], "cannot be served", 1),
        (["--queue", "0"], "queue", 2),
        (["--no-such-option"], "--no-such-option", 2),
    ],
)
def test_errors_are_one_line_and_a_code(arguments, said, code, monkeypatch):
    monkeypatch.delenv("LENSPLORER_TOKEN", raising=False)
    result = CliRunner().invoke(cli, ["serve", "--port", "0", *arguments])
    assert result.exit_code == code and said in result.stderr and "Traceback" not in result.output
