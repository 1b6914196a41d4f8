"""The websockets of the dashboard's pages: what they leave behind ends, and damaged ones are refused. A whole page is in ``test_live``."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.websockets import WebSocketState

from lensplorer.server.dashboard import PageSockets


class Pages:
    """As much of bokeh-fastapi's application as is used."""

    def __init__(self, *states):
        self._clients = {self.connection(state) for state in states}
        self.lost = []

    def client_lost(self, connection):
        self.lost.append(connection._socket._socket.client_state)
        self._clients.discard(connection)

    @staticmethod
    def connection(state):
        class Connection:
            _socket = SimpleNamespace(_socket=SimpleNamespace(client_state=state))

        return Connection()


def sent_by(app, pages):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(PageSockets(app, pages)({"type": "websocket"}, None, send))
    return sent


def test_a_page_that_has_gone_is_let_go_and_the_others_stay():
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})

    pages = Pages(WebSocketState.DISCONNECTED, WebSocketState.CONNECTED)
    assert sent_by(app, pages) == [{"type": "websocket.accept"}]
    assert pages.lost == [WebSocketState.DISCONNECTED] and len(pages._clients) == 1


@pytest.mark.parametrize("first", [None, {"type": "websocket.close"}])
def test_a_damaged_session_is_refused_once(first):
    async def app(scope, receive, send):
        if first is not None:
            await send(first)
        raise ValueError("no token")

    pages = Pages(WebSocketState.DISCONNECTED)
    assert [message["type"] for message in sent_by(app, pages)] == ["websocket.close"] and pages.lost
