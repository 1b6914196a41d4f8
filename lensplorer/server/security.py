"""Who may come in: the host by which the server is called, the page that calls it, and the token; and what every answer tells the browser.

*Host and origin.* See ``lensplorer.hosts``. They are checked before anything else, for pages, files and websockets alike.
*Token.* ``Authorization: Bearer …``. A browser cannot send that for a page or a websocket, so it may open any page once with ``?token=…`` and gets a
cookie, which does not hold the token itself and is not sent from pages of other sites.
*Headers.* No page of another site may frame an answer, read it as another kind, or learn its address; scripts come from this server alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lensplorer.hosts import host_name, refusal
from lensplorer.server.limits import BodyLimit
from lensplorer.server.settings import ServerSettings

logger = logging.getLogger(__name__)

COOKIE = "lensplorer_token"
#: Of every answer. What a page may load is in its policy.
HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self' blob:;"
    " worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: Of a page that is not ours (``--page``): it may load what it likes, and nobody may frame it.
PAGE_POLICY = "frame-ancestors 'none'"
_SCRIPT = re.compile(rb"<script\b(.*?</script>)", re.DOTALL | re.IGNORECASE)


def add_door(app: Starlette, settings: ServerSettings) -> None:
    """Put everything in front of an application that decides what reaches it, and behind it what catches its failures.

    From the outside in: headers, host and origin, other sites that are allowed, token, size of the request, failures.
    """
    app.add_middleware(LastHandler)
    app.add_middleware(BodyLimit, max_body=settings.max_body, seconds=settings.receive_seconds)
    app.add_middleware(TokenGate, token=settings.token)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["Authorization", "Content-Type"]
        )
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(SafeHeaders)


class Gate:
    """Lets through what is called by a name served here and by no page of another site; 403 for the rest."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._sites = settings.cors_origins
        self._names = {host_name(name) for name in (settings.address, *settings.allowed_hosts)}
        self._any_name = not settings.is_local and not settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self.app(scope, receive, send)
        else:
            await _refuse(JSONResponse({"detail": reason}, 403), scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if scope["type"] == "websocket" and "origin" not in headers:
            return "A websocket is opened by a page of this server, and a browser names it in Origin."
        return refusal(headers, names=self._names, any_name=self._any_name, sites=self._sites)


class TokenGate:
    """Lets through who shows the token, if there is one; 401 for the rest."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self._token = b"" if token is None else token.encode()
        self._cookie = hmac.new(self._token, b"lensplorer cookie", hashlib.sha256).hexdigest().encode()
        self._name = f"{COOKIE}_{hmac.new(self._token, b'lensplorer name', hashlib.sha256).hexdigest()[:8]}"  # cookies are not kept apart by port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._token or scope["type"] not in ("http", "websocket") or self._shows_token(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        detail = "A token is needed: send 'Authorization: Bearer …', or open the page once with ?token=…"
        await _refuse(self._admitted(scope) or JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"}), scope, receive, send)

    def _shows_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._name)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._cookie)

    def _admitted(self, scope: Scope) -> Response | None:
        """Where a page is opened with the right ``?token=``, the same page without it, and the cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if scope["type"] != "http" or scope["method"] != "GET" or given is None or not _same(given, self._token):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/")  # two slashes in front would be another host
        response = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        response.set_cookie(self._name, self._cookie.decode(), httponly=True, samesite="strict", secure=scope.get("scheme") == "https")
        return response


async def _refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)


def _same(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", errors="replace"), expected)


class SafeHeaders:
    """Gives every answer the headers above and a policy, unless it has one of its own.

    A page is held until it is whole. The scripts in it get a number that is drawn for this answer and stands in its policy: what gets into the
    page afterwards, such as a ``<script>`` or an ``onerror`` in a text, does not have it and does not run.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        held: Message | None = None
        page = bytearray()

        async def dress(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                is_page = headers.get("content-type", "").startswith("text/html") and "content-security-policy" not in headers
                headers.setdefault("Content-Security-Policy", _POLICY.format(nonce=nonce))
                if is_page:
                    held = message
                    return
            elif held is not None:
                page.extend(message.get("body", b""))
                if message.get("more_body", False):
                    return
                marked = marked_scripts(bytes(page), nonce)
                MutableHeaders(scope=held)["Content-Length"] = str(len(marked))
                await send(held)
                message = {"type": "http.response.body", "body": marked}
            await send(message)

        await self.app(scope, receive, dress)


def marked_scripts(page: bytes, nonce: str) -> bytes:
    """The page with ``nonce`` on each of its scripts.

    >>> marked_scripts(b"<p><script>let a = 1</script><script src=a.js></script>", "x")
    b'<p><script nonce="x">let a = 1</script><script nonce="x" src=a.js></script>'
    """
    return _SCRIPT.sub(rb'<script nonce="%s"\1' % nonce.encode(), page)


class LastHandler:
    """Turns what nobody foresaw into a sentence with an id, which stands in the log beside the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception:
            number = secrets.token_hex(4)
            logger.exception("Failure %s: %s %r", number, scope["type"], scope.get("path"))
            if begun or scope["type"] not in ("http", "websocket"):
                raise
            detail = f"The server failed to answer this. Its log says more, under {number}."
            await _refuse(JSONResponse({"detail": detail}, 500), scope, receive, send)
