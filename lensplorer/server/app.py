"""The FastAPI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline

from lensplorer import __version__
from lensplorer.errors import LensplorerError
from lensplorer.models import LensModel
from lensplorer.server import generation
from lensplorer.server.analyses import Context, Endpoint, SAEs, endpoints
from lensplorer.server.limits import TooLarge, TooMany
from lensplorer.server.models import ModelBusy, ModelNotReady, ModelRefused, ModelService, ModelStore
from lensplorer.server.queue import Busy, Dropped, RunQueue, TookTooLong, client_of, departure
from lensplorer.server.results import Result, to_json
from lensplorer.server.schemas import (
    Attribution,
    AttributionRequest,
    LoadAnswer,
    LoadRequest,
    ModelStatus,
    Preview,
    PreviewRequest,
    Problem,
    Step,
    StepRequest,
)
from lensplorer.server.security import PAGE_POLICY, add_door
from lensplorer.server.settings import ServerSettings

T = TypeVar("T")

#: error → status; any other error of lensplorer's own is 400, the caller's.
_STATUS: dict[type[LensplorerError], int] = {
    TooLarge: 413,
    TooMany: 422,
    ModelRefused: 403,
    ModelBusy: 409,
    ModelNotReady: 503,
    Busy: 429,
    Dropped: 503,
    TookTooLong: 504,
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": text}
    for code, text in {
        400: "The library refuses; the detail says what would fit.",
        401: "A token is needed.",
        403: "Not allowed here.",
        408: "The request was not there in time.",
        413: "Too large a request, prompt or result.",
        422: "The body is not as described.",
        429: "Too many wait; Retry-After says how long.",
        503: "No model is ready, or memory is short.",
        504: "It took all the time that the server gives a request, and was stopped.",
    }.items()
}
_DESCRIPTION = """Drive a language model one token at a time and see exactly why it says what it says.

`/api/model/…`, `/api/preview`, `/api/step` and `/api/attribution` are those of the next-token visualization; `/api/analyses/…` are the analyses of
the library, one each, with the options of the function of that name."""


class Server:
    """What the endpoints share: settings, models, SAEs and the queue."""

    def __init__(self, settings: ServerSettings, store: ModelStore, model: LensModel | None) -> None:
        self.settings, self.store = settings, store
        if model is not None:
            store.keep(model)
        self.models = ModelService(store, model)
        self.saes = SAEs(settings)
        self.queue = RunQueue(settings.queue_size, settings.max_seconds)

    async def run(self, http: Request, function: Callable[[], T]) -> T:
        """What ``function`` returns, in its turns; none where the client has left."""
        return await self.queue.run(function, client=client_of(http.client), left=partial(departure, http.receive))

    def analyse(self, endpoint: Endpoint, body: Any) -> bytes:
        """An analysis' result as JSON text."""
        context = Context(self.models.served, self.settings, self.saes)
        return to_json(endpoint.answer(context, body), max_values=self.settings.max_values)


def create_app(settings: ServerSettings | None = None, *, model: LensModel | None = None, store: ModelStore | None = None) -> FastAPI:
    """The API over HTTP, ready for any ASGI server.

    >>> app = create_app(ServerSettings(model="storyworld"))
    >>> "/api/step" in app.openapi()["paths"]
    True

    Args:
        settings: what it may do; None: the defaults, for this machine alone.
        model: the model that answers, if it is loaded already; else the one of the settings is loaded in the background when the server starts.
        store: where models come from, to share them with others in this process.

    Returns:
        The application; ``app.state.server`` is its ``Server``. Its documentation is at ``/docs`` and needs no network.
    """
    settings = settings if settings is not None else ServerSettings()
    server = Server(settings, store if store is not None else ModelStore(settings), model)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if server.models.status()["serving"] is None:
            server.models.load(settings.model)
        yield
        server.queue.close()

    app = FastAPIOffline(
        title="lensplorer",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": -1},  # the validator would be another host
        responses=_PROBLEMS,
    )
    app.state.server = server
    app.include_router(_generation_routes(server))
    app.include_router(_analysis_routes(server))
    if settings.page is not None:
        page = settings.page
        headers = {"Content-Security-Policy": PAGE_POLICY}
        app.add_api_route("/", lambda: FileResponse(page, media_type="text/html", headers=headers), methods=["GET"], include_in_schema=False)
    handle_errors(app)
    add_door(app, settings)
    return app


def _generation_routes(server: Server) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["next-token visualization"])
    settings = server.settings

    @router.get("/model/status", summary="Which model answers, and whether another is being loaded", response_model=ModelStatus)
    async def model_status() -> dict[str, Any]:
        return server.models.status()

    @router.post(
        "/model/load",
        summary="Load a model in the background; the old one answers meanwhile",
        response_model=LoadAnswer,
        responses={409: {"model": Problem, "description": "Another model is being loaded."}},
    )
    async def model_load(request: LoadRequest) -> dict[str, Any]:
        name = request.model_id.strip()
        if not name:
            raise LensplorerError("model_id is empty: name a built-in model ('storyworld') or one of the hub ('gpt2').")
        return {"ok": True, "model_id": await asyncio.to_thread(server.models.load, name)}

    @router.post("/preview", summary="The prompt's tokens, and what the next token would be chosen from", response_model=Preview)
    async def preview(http: Request, request: PreviewRequest) -> dict[str, Any]:
        return await server.run(http, lambda: generation.preview(server.models.served, request, settings))

    @router.post("/step", summary="Append one token, chosen by the model or by you, or a text", response_model=Step)
    async def step(http: Request, request: StepRequest) -> dict[str, Any]:
        return await server.run(http, lambda: generation.step(server.models.served, request, settings))

    @router.post(
        "/attribution", summary="A score per token for one token of the completion", response_model=Attribution, response_model_exclude_unset=True
    )
    async def attribution(http: Request, request: AttributionRequest) -> dict[str, Any]:
        return await server.run(http, lambda: generation.attribution(server.models.served, request, settings))

    return router


def _analysis_routes(server: Server) -> APIRouter:
    router = APIRouter(prefix="/api/analyses", tags=["analyses"])
    table = endpoints()

    @router.get("", summary="The analyses by name")
    async def list_analyses() -> dict[str, str]:
        return {endpoint.name: endpoint.summary for endpoint in table}

    for endpoint in table:
        router.add_api_route(
            f"/{endpoint.name}",
            _analysis_route(server, endpoint),
            methods=["POST"],
            name=endpoint.name,
            summary=endpoint.summary,
            description=f"```text\n{endpoint.description}\n```",
            response_model=Result,
        )
    return router


def _analysis_route(server: Server, endpoint: Endpoint) -> Callable[..., Any]:
    async def route(http: Request, body: Any) -> Response:
        return Response(await server.run(http, lambda: server.analyse(endpoint, body)), media_type="application/json")

    route.__annotations__ = {"http": Request, "body": endpoint.body, "return": Response}  # FastAPI reads the body's type from here
    return route


def handle_errors(app: FastAPI) -> None:
    """Every error is JSON with ``detail``; none shows a traceback or sends back what was sent."""

    @app.exception_handler(LensplorerError)
    async def refused(request: Request, error: LensplorerError) -> Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
        headers = {"Retry-After": str(getattr(error, "retry_after", 1))} if status in (429, 503) else None
        return _problem(str(error), status, headers)

    @app.exception_handler(RequestValidationError)
    async def not_as_described(request: Request, error: RequestValidationError) -> Response:
        return _problem([{"loc": list(one["loc"]), "msg": one["msg"], "type": one["type"]} for one in error.errors()], 422)

    @app.exception_handler(torch.OutOfMemoryError)
    async def out_of_memory(request: Request, error: Exception) -> Response:
        return _problem("The device is out of memory: shorten the prompt, or try again when others have finished.", 503, {"Retry-After": "5"})

    @app.exception_handler(RecursionError)
    async def too_deep(request: Request, error: Exception) -> Response:
        return _problem("The request is nested too deeply.", 400)


class Plain(JSONResponse):
    """JSON of any text, half of a surrogate pair included, which is no character and becomes a question mark."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", errors="replace")


def _problem(detail: Any, status: int, headers: dict[str, str] | None = None) -> Response:
    return Plain({"detail": detail}, status, headers)
