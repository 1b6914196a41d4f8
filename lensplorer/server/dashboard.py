"""The dashboard in the same process: at ``/explorer``, with the models of the API."""

from __future__ import annotations

import logging
import os
import secrets
from typing import Any

from bokeh.protocol.exceptions import ProtocolError
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketState

from lensplorer.dashboard.options import Options
from lensplorer.errors import first_line
from lensplorer.server.settings import ServerSettings

logger = logging.getLogger(__name__)

PATH = "/explorer"


def add_dashboard(app: FastAPI, settings: ServerSettings, options: Options) -> None:
    """Serve the dashboard beside the API of ``app``, which ``create_app`` made.

    A page loads models through the API's store: what may not be loaded over HTTP may not be loaded from a page, and both run the same model
    under the same lock. Sessions are signed, since the query of a page (``?model=…``) comes back from the browser in its token.
    """
    os.environ.setdefault("BOKEH_RESOURCES", "server")  # from here, not from a network
    import panel_material_ui  # noqa: F401  before panel's FastAPI: its resources are registered then
    from panel.io.fastapi import add_applications

    from lensplorer.dashboard.page import build_page

    store = app.state.server.store
    before = len(app.routes)
    pages = add_applications(
        {PATH: lambda: build_page(options, load=store.get)},
        app=app,
        title="lensplorer",
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        websocket_origins=["*"],  # the Gate checks the origin of every request
    )
    for route in app.routes[before:]:
        hide(route)
    app.add_middleware(PageSockets, pages=pages)
    if settings.page is None:
        app.add_api_route("/", lambda: RedirectResponse(PATH), methods=["GET"], include_in_schema=False)


class PageSockets:
    """Ends what the websocket of a page leaves behind.

    bokeh-fastapi (0.1.8) does not notice that a browser has gone: its session, with the model and all that was computed, would stay for ever. And
    a connection with a damaged or forged session token ends in an exception: it is refused instead.
    """

    def __init__(self, app: ASGIApp, pages: Any) -> None:
        self.app, self.pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        answered = False

        async def note(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except (ProtocolError, RuntimeError, ValueError, KeyError, TypeError) as error:
            logger.warning("A websocket was refused: %s", first_line(error))
            if not answered:
                await send({"type": "websocket.close", "code": 1008})
        finally:
            for connection in list(self.pages._clients):
                if connection._socket._socket.client_state is WebSocketState.DISCONNECTED:
                    self.pages.client_lost(connection)


def hide(route: Any) -> None:
    """Keep a page's route out of the documentation of the API."""
    if hasattr(route, "include_in_schema"):
        route.include_in_schema = False
