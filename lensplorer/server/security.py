"""Who may come in: the host by which the server is called, the page that calls it, and the token.

*Host.* A page of another site can make its own name point at this machine (DNS rebinding) and then read what a server here answers; its requests
carry that name. On this machine's own address only the machine's own names are answered.
*Origin.* A browser names the page that sends a request or opens a websocket. Only pages of this server, and those allowed by name, may.
*Token.* ``Authorization: Bearer …``. A browser cannot send that for a page or a websocket, so it may open any page once with ``?token=…`` and gets a
cookie, which does not hold the token itself and is not sent from pages of other sites.
"""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lensplorer.server.settings import ServerSettings, is_loopback

COOKIE = "lensplorer_token"


class Gate:
    """Lets through what may come in, and answers the rest: 401 without the token, 403 for a foreign host or origin."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings
        self._token = None if settings.token is None else settings.token.encode()
        self._cookie = b"" if self._token is None else hmac.new(self._token, b"lensplorer cookie", hashlib.sha256).hexdigest().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._knows_host(host):
            return JSONResponse({"detail": f"This server does not answer under the host name {host!r}. Allow it with --allow-host."}, 403)
        origin = headers.get("origin")
        if origin is not None and not self._knows_origin(origin, host):
            return JSONResponse({"detail": f"Pages of {origin!r} may not use this server. Allow it with --cors-origin."}, 403)
        if self._token is None or self._shows_token(headers):
            return None
        return self._admitted(scope) or JSONResponse(
            {"detail": "A token is needed: send 'Authorization: Bearer …', or open the page once with ?token=…"}, 401, {"WWW-Authenticate": "Bearer"}
        )

    def _knows_host(self, host: str) -> bool:
        name = _host_name(host)
        if name in (allowed.lower() for allowed in self.settings.allowed_hosts):
            return True
        return is_loopback(name) if self.settings.is_local else not self.settings.allowed_hosts

    def _knows_origin(self, origin: str, host: str) -> bool:
        return origin in self.settings.cors_origins or (host != "" and _site(origin) == host.lower())

    def _shows_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._token or b""):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _same(cookie.value, self._cookie)

    def _admitted(self, scope: Scope) -> Response | None:
        """Where a page is opened with the right ``?token=``, the same page without it, and the cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if scope["type"] != "http" or scope["method"] != "GET" or given is None or not _same(given, self._token or b""):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/")  # two slashes in front would be another host
        response = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        response.set_cookie(COOKIE, self._cookie.decode(), httponly=True, samesite="strict", secure=scope.get("scheme") == "https")
        return response


def _same(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", errors="replace"), expected)


def _site(origin: str) -> str:
    """Host and port of an origin; empty for ``null`` and what is no origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    """The name in a Host header, without the port.

    >>> _host_name("LOCALHOST:8000"), _host_name("[::1]:8000"), _host_name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    name, _, port = host.lower().rpartition(":")
    return name if port.isdigit() else host.lower()
