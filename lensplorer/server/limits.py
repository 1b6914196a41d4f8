"""No request is read beyond the size allowed, and none asks for more than that."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lensplorer.errors import LensplorerError
from lensplorer.server.settings import ServerSettings


class TooLarge(LensplorerError):
    """A request asks for more than the server gives: tokens, or numbers in a result."""


def check_tokens(settings: ServerSettings, ids: Sequence[int]) -> None:
    """
    Raises:
        TooLarge: there are more tokens than the server takes.
    """
    if len(ids) > settings.max_tokens:
        raise TooLarge(f"{len(ids)} tokens are more than the {settings.max_tokens} that this server takes. Shorten the prompt.")


class TooMany(LensplorerError):
    """A request asks for a longer ranking than the server gives."""


def check_top_k(settings: ServerSettings, **counts: int) -> None:
    """
    Raises:
        TooMany: one of the counts is more than the server gives.
    """
    for name, count in counts.items():
        if count > settings.max_top_k:
            raise TooMany(f"{name} must be at most {settings.max_top_k} on this server, got {count}.")


class BodyLimit:
    """Reads a request's body before anything else does, and refuses one that is longer than ``max_body`` bytes with 413."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > self.max_body:
            await self._refuse(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                await self._refuse(scope, receive, send)
                return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"The request is larger than the {self.max_body} bytes that this server takes."
        await JSONResponse({"detail": detail}, 413, {"Connection": "close"})(scope, receive, send)
