"""Servers in this process, on the built-in model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lensplorer.server.app import create_app
from lensplorer.server.settings import ServerSettings

HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def serving(storyworld: Any) -> Iterator[Callable[..., TestClient]]:
    """(settings) → a client of a server with them, on storyworld."""
    clients: list[TestClient] = []

    def serve(model: Any = storyworld, url: str = HERE, **settings: Any) -> TestClient:
        app = create_app(ServerSettings(model="storyworld", **settings), model=model)
        clients.append(TestClient(app, base_url=url, raise_server_exceptions=False))
        return clients[-1]

    yield serve
    for client in clients:
        client.app.state.server.queue.close()  # type: ignore[attr-defined]
        client.close()


@pytest.fixture(scope="session")
def client(serving: Callable[..., TestClient]) -> TestClient:
    """A client of a server for this machine alone."""
    return serving()
