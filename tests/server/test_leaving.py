"""A real server and raw sockets that close: nothing is computed for who has left, and nobody waits behind a long analysis for more than a run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn

import lensplorer.running
from lensplorer.server import queue as queue_module
from lensplorer.server.app import create_app
from lensplorer.server.settings import ServerSettings
from lensplorer.watching import tick
from tests.test_locks import wait_until

WORDS = "Once upon a time there was a little girl who went to the shop. "


class Live:
    """A server on a free port, in a thread of this process: its runs can be counted and held.

    Attributes:
        runs: how many runs of the model have begun.
        before: called with that number before each.
    """

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        app = create_app(ServerSettings(model="storyworld"), model=model)
        self.queue = app.state.server.queue
        self.runs = 0
        self.before: Callable[[int], None] = lambda number: None
        monkeypatch.setattr(lensplorer.running, "tick", self._tick)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _tick(self) -> None:
        self.runs += 1
        self.before(self.runs)
        tick()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def send(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A connection on which this was asked."""
        text = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(head.encode() + text)
        return connection

    def is_idle(self) -> bool:
        return not self.queue._inside and self.queue._running is None

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def live(storyworld: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    server = Live(storyworld, monkeypatch)
    yield server
    server.stop()


def patching() -> tuple[str, dict[str, Any]]:
    """An analysis of thousands of runs over hundreds of tokens."""
    clean, corrupt = (WORDS * 20 + f"{name} gave a book to" for name in ("Mary", "John"))
    metric = {"target": " Mary", "versus": " John"}
    return "/api/analyses/activation_patching", {"clean": {"prompt": clean}, "corrupt": {"prompt": corrupt}, "hook": "resid_pre", "metric": metric}


def test_the_run_of_a_client_that_has_left_stops_at_its_next_tick(live: Live) -> None:
    connection = live.send(*patching())

    def leave(number: int) -> None:
        if number == 5:
            connection.close()
            wait_until(lambda: not live.queue._inside)

    live.before = leave
    wait_until(lambda: live.runs == 5 and live.is_idle())
    with live.client() as client:
        assert client.post("/api/preview", json={"prompt": "Once"}).status_code == 200


def test_a_preview_is_answered_while_a_long_analysis_runs(live: Live) -> None:
    """Between two of its runs, and the analysis goes on."""
    with live.client() as client, ThreadPoolExecutor(1) as other:
        path, body = patching()
        answers = []

        def ask(number: int) -> None:
            if number == 5:
                answers.append(other.submit(client.post, "/api/preview", json={"prompt": "Once"}))
                wait_until(lambda: bool(live.queue._short))
            if number == 8:  # of the preview one, of the analysis not more than two
                wait_until(lambda: answers[0].done())

        live.before = ask
        connection = live.send(path, body)
        wait_until(lambda: bool(answers) and answers[0].done())
        assert answers[0].result().status_code == 200 and live.queue._inside
        connection.close()
        wait_until(live.is_idle)


def test_seventeen_that_leave_keep_nobody_waiting(live: Live) -> None:
    """A full queue of them is empty at once, whichever is running."""
    body = {"prompt": WORDS * 16, "target": 5, "method": "integrated_gradients"}
    connections = [live.send("/api/analyses/attribute", body) for _ in range(17)]
    wait_until(lambda: len(live.queue._inside) == 17)
    for connection in connections:
        connection.close()
    wait_until(lambda: not live.queue._inside)
    with live.client() as client:
        assert client.post("/api/preview", json={"prompt": "Once"}).status_code == 200
    wait_until(live.is_idle)


def test_a_client_that_closes_while_it_waits_is_not_run(live: Live) -> None:
    first = live.send(*patching())
    second = None

    def leave(number: int) -> None:
        nonlocal second
        if number == 2:
            second = live.send("/api/step", {"prompt": "Once"})
            wait_until(lambda: len(live.queue._inside) == 2)
            second.close()
            wait_until(lambda: len(live.queue._inside) == 1)
        if number == 4:
            first.close()
            wait_until(lambda: not live.queue._inside)

    live.before = leave
    wait_until(lambda: live.runs == 4 and live.is_idle())


# -- under load, everything is what it is alone ------------------------------------------------------------------------------------------


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """Requests of every kind: several runs, runs with gradients, methods that draw at random, and the tree that all share."""
    story = "Once upon a time there was a little {} who"
    others = ("apple", "king", "lamp", "moon", "nest", "sun")  # no two paths of the tree share more than their first token: pieces would be others
    found: list[tuple[str, dict[str, Any]]] = []
    for number, word in enumerate(("girl", "boy", "dog", "cat", "fox", "hat")):
        prompt = story.format(word)
        methods = ("integrated_gradients", "occlusion", "kernel_shap", "lime", "gradient_shap", "deeplift")
        found.append(("/api/analyses/attribute", {"prompt": prompt, "target": 5, "method": methods[number], "n_samples": 40, "seed": number}))
        found.append(("/api/analyses/attribute", {"prompt": prompt, "target": 6, "method": "gradient_shap", "n_samples": 40, "seed": number}))
        found.append(("/api/analyses/logit_lens", {"prompt": prompt, "top_k": 3}))
        found.append(("/api/analyses/verify_by_ablation", {"prompt": prompt, "target": 5, "unit": "head"}))
        found.append(("/api/step", {"prompt": f"{word} and", "use_chat_template": False, "force_text": " the little girl went to the shop"}))
        found.append(("/api/preview", {"prompt": f"{others[number]} and", "use_chat_template": False}))
        found.append(("/api/attribution", {"prompt": prompt, "target_index": 0, "target_token_id": 5, "method": "integrated_gradients"}))
        found.append(("/api/analyses/head_scores", {"length": 8, "batch": 2, "seed": number}))
    return found


def test_eight_clients_get_what_each_would_alone(live: Live, storyworld: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, though the turn goes to another at every run that may be left."""
    monkeypatch.setattr(queue_module, "SLICE", 0.0)
    asked = jobs()

    def ask(client: httpx.Client, job: tuple[str, dict[str, Any]]) -> tuple[int, bytes]:
        response = client.post(job[0], json=job[1])
        return response.status_code, response.content

    with live.client() as client:
        client.post("/api/preview", json={"prompt": ""})  # the token with which all begin
        alone = [ask(client, job) for job in asked]
    assert [text for status, text in alone if status != 200 and b"DeepLIFT does not hold" not in text] == []
    server = Live(storyworld, monkeypatch)  # with a tree of its own
    try:
        with server.client() as client:
            client.post("/api/preview", json={"prompt": ""})
        switches = []
        server.before = lambda number: switches.append(bool(server.queue._short or server.queue._long))

        def work(share: list[int]) -> dict[int, tuple[int, bytes]]:
            with server.client() as client:
                return {index: ask(client, asked[index]) for index in share}

        with ThreadPoolExecutor(8) as clients:
            shares = [list(range(start, len(asked), 8)) for start in range(8)]
            together = {index: answer for found in clients.map(work, shares) for index, answer in found.items()}
        assert sum(switches) > 100
        for index, job in enumerate(asked):
            assert together[index] == alone[index], job
    finally:
        server.stop()
