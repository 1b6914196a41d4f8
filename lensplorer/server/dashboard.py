"""The dashboard as an ASGI application: at ``/explorer``, by itself or beside the API, with the models of one store."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from bokeh.protocol.exceptions import ProtocolError
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketState

from lensplorer.dashboard.options import Options
from lensplorer.errors import first_line
from lensplorer.server.models import ModelStore
from lensplorer.server.security import add_door
from lensplorer.server.settings import ServerSettings

logger = logging.getLogger(__name__)

PATH = "/explorer"
_COMPONENTS = ("panel", "panel_material_ui", "lensplorer")  #: packages of which a page loads files


def create_page(settings: ServerSettings, options: Options, store: ModelStore) -> FastAPI:
    """The dashboard without the API, behind the same door."""
    app = FastAPI(title="lensplorer", openapi_url=None)
    add_dashboard(app, options, store)
    add_door(app, settings)
    return app


def add_dashboard(app: FastAPI, options: Options, store: ModelStore) -> None:
    """Serve the dashboard at ``/explorer``, and at ``/`` where nothing else is.

    A page loads models through ``store``: what may not be loaded over HTTP may not be loaded from a page, and pages and API run the same model
    under the same lock. Sessions are signed, since the query of a page (``?model=…``) comes back from the browser in its token.
    """
    os.environ.setdefault("BOKEH_RESOURCES", "server")  # from here, not from a network
    import panel_material_ui  # noqa: F401  before panel's FastAPI: its resources are registered then
    from bokeh_fastapi.handler import DocHandler
    from panel.io.fastapi import add_applications

    from lensplorer.dashboard.page import build_page

    before = len(app.routes)

    # In front of the routes of the same paths that add_applications makes.
    @app.get(PATH, include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        return await documents.get(_bare(request))

    @app.get("/components/{path:path}", include_in_schema=False)
    def component(path: str) -> FileResponse:
        return FileResponse(_component_file(path))

    pages = add_applications(
        {PATH: lambda: build_page(options, load=store.get)},
        app=app,
        title="lensplorer",
        location=False,  # Panel would read numbers out of the query, which fails for a long one
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        websocket_origins=["*"],  # the Gate checks the origin of every request
    )
    documents = DocHandler(pages, pages._applications[PATH])
    for route in app.routes[before:]:
        hide(route)
        if getattr(route, "path", "") == f"{PATH}/ws":
            route.app = PageSockets(route.app, pages)  # type: ignore[attr-defined]
    if not any(getattr(route, "path", "") == "/" for route in app.routes):
        app.add_api_route("/", lambda: RedirectResponse(PATH), methods=["GET"], include_in_schema=False)


def _bare(request: Request) -> Request:
    """A request with its host alone for a header: Bokeh writes all of them into the page, the cookie that stands for the token included."""
    return Request({**request.scope, "headers": [(name, value) for name, value in request.scope["headers"] if name == b"host"]})


def _component_file(path: str) -> Path:
    """The file of a component that a page asks for, as ``module/class/attribute/file``.

    Panel would import whatever module is named, and running a module is more than reading its files: only what is imported already is looked at.

    Raises:
        HTTPException: there is no such file.
    """
    from panel.io.server import ComponentResourceHandler
    from tornado.web import HTTPError

    module = path.partition("/")[0]
    file = None
    if module in sys.modules and module.partition(".")[0] in _COMPONENTS:
        try:
            file = Path(ComponentResourceHandler.parse_url_path(ComponentResourceHandler, path))
        except (HTTPError, AttributeError, LookupError, TypeError, ValueError, OSError):
            file = None
    if file is None or not file.is_file():
        raise HTTPException(404)
    return file


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
