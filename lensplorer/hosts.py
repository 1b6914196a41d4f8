"""Under which names a server on this machine answers, and to pages of which sites.

A page of another site can make its own name point at this machine (DNS rebinding) and then read what a server here answers; its requests carry
that name. A browser also names the page that sends a request or opens a websocket, its origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

TOKEN_VARIABLE = "LENSPLORER_TOKEN"  #: environment variable that holds the token

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]+)?")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in a Host header, without port, brackets and final dot; empty for what is no host.

    >>> host_name("LOCALHOST:8000"), host_name("[::1]:8000"), host_name("example.org."), host_name("no host")
    ('localhost', '::1', 'example.org', '')
    """
    found = _HOST.fullmatch(host.lower())
    return found[1].strip("[]").removesuffix(".") if found else ""


def refusal(headers: Mapping[str, str], *, names: Collection[str] = (), any_name: bool = False, sites: Collection[str] = ()) -> str | None:
    """Why a request is not answered; None where it may be.

    >>> refusal({"host": "127.0.0.1:5006", "origin": "http://127.0.0.1:5006"}) is None
    True
    >>> refusal({"host": "evil.example:5006"})
    "This server does not answer under the host name 'evil.example:5006'. Allow it with --allow-host."

    Args:
        headers: the request's, by names in any case.
        names: what the server may be called beside this machine's own names, as ``host_name`` writes them.
        any_name: whether any other name will do: where a token protects the server.
        sites: origins that may use it beside its own pages.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    name = host_name(host)
    if not name or not (any_name or name in names or is_loopback(name)):
        return f"This server does not answer under the host name {host!r}. Allow it with --allow-host."
    if origin is not None:
        known = origin in sites or _site(origin) == host.lower()
        return None if known else f"Pages of {origin!r} may not use this server. Allow it with --cors-origin."
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _opens_a_page(headers):
        return "Pages of other sites may link to this server, and not show or load it as a part of themselves."
    return None


def _opens_a_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that it asks for a page of its own, and not for a frame, an image or a script of another page."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _site(origin: str) -> str:
    """Host and port of an origin; empty for ``null`` and what is no origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
