"""No request is read beyond the size allowed, and none asks for more than that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

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
    """Reads a request's body before anything else does: 413 for one longer than ``max_body`` bytes, 408 for one not there within ``seconds``."""

    def __init__(self, app: ASGIApp, max_body: int, seconds: float) -> None:
        self.app, self.max_body, self.seconds = app, max_body, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._body(scope, receive)
        except TooLarge as error:
            await _refuse(str(error), 413, scope, receive, send)
            return
        except TimeoutError:
            await _refuse(f"The request was not there within {self.seconds} seconds.", 408, scope, receive, send)
            return
        if body is None:
            return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client has gone.

        Raises:
            TooLarge: it is too long, or says that it will be.
        """
        said = dict(scope["headers"]).get(b"content-length", b"0")
        length = int(said[:20]) if said.isdigit() else 0
        body, more = bytearray(), True
        while more and max(length, len(body)) <= self.max_body:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if max(length, len(body)) > self.max_body:
            raise TooLarge(f"The request is larger than the {self.max_body} bytes that this server takes.")
        return bytes(body)


async def _refuse(detail: str, status: int, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": detail}, status, {"Connection": "close"})(scope, receive, send)


class _HeadLimit(H11Protocol):
    """A connection that is closed where the first lines of a request are not there within ``seconds``."""

    seconds: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Have one timer run from the first moment in which a request is begun and not whole."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._waits is None:
            self._waits = self.loop.call_later(self.seconds, self.transport.close)

    def _forget(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None


def head_limit(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, with a limit to how long a request's first lines may take."""
    return type("HeadLimit", (_HeadLimit,), {"seconds": seconds})
