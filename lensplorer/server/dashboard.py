"""The dashboard in the same process: at ``/explorer``, with the models of the API."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from lensplorer.dashboard.options import Options
from lensplorer.server.settings import ServerSettings

PATH = "/explorer"


def add_dashboard(app: FastAPI, settings: ServerSettings, options: Options) -> None:
    """Serve the dashboard beside the API of ``app``, which ``create_app`` made.

    A page loads models through the API's store: what may not be loaded over HTTP may not be loaded from a page, and both run the same model
    under the same lock. Sessions are signed, since the query of a page (``?model=…``) comes back from the browser in its token.
    """
    import panel_material_ui  # noqa: F401  before panel's FastAPI: its resources are registered then
    from panel.io.fastapi import add_applications

    from lensplorer.dashboard.page import build_page

    store = app.state.server.store
    before = len(app.routes)
    add_applications(
        {PATH: lambda: build_page(options, load=store.get)},
        app=app,
        title="lensplorer",
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        websocket_origins=["*"],  # the Gate checks the origin of every request
    )
    for route in app.routes[before:]:
        hide(route)
    if settings.page is None:
        app.add_api_route("/", lambda: RedirectResponse(PATH), methods=["GET"], include_in_schema=False)


def hide(route: Any) -> None:
    """Keep a page's route out of the documentation of the API."""
    if hasattr(route, "include_in_schema"):
        route.include_in_schema = False
