"""Host, origin and token, asked of real servers over real sockets: pages, files and websockets alike."""

from __future__ import annotations

import json
import re
import socket

import httpx
import pytest
from bokeh.util.token import generate_jwt_token, get_token_payload
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.security.conftest import EVIL, Door

PATHS = ("/explorer", "/", "/static/js/bokeh.min.js", "/static/extensions/panel/panel.min.js", "/components/x/y/z", "/nothing")
COMMAND = "Save the session to a file"  #: stands in the document of a page that takes commands
SAFE = {"x-frame-options": "DENY", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def open_socket(door: Door, token: str, *, host: str, origin: str | None) -> str:
    """What the websocket of a page answers to a request for the page's document."""
    with connect(
        f"ws://{host}/explorer/ws", sock=socket.create_connection(("127.0.0.1", door.port)), subprotocols=["bokeh", token], origin=origin
    ) as opened:
        assert json.loads(opened.recv(60))["msgtype"] == "ACK"
        opened.recv(60), opened.recv(60)
        for part in (json.dumps({"msgid": "1", "msgtype": "PULL-DOC-REQ"}), "{}", "{}"):
            opened.send(part)
        return "".join(opened.recv(60) for _ in range(3))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host", [EVIL, f"{EVIL}:80", "192.168.1.5", "0.0.0.0", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example.", "[::1].x", "a b", "["]
)
def test_a_foreign_host_gets_nothing(door, host, path):
    response = door.get(path, headers={"Host": host})
    assert response.status_code == 403 and set(response.json()) == {"detail"} and "--allow-host" in response.text


@pytest.mark.parametrize(
    "request_line",
    ["GET /explorer HTTP/1.0\r\n\r\n", "GET /explorer HTTP/1.1\r\n\r\n", "GET /explorer HTTP/1.1\r\nHost: localhost\r\nHost: x\r\n\r\n"],
)
def test_nor_does_a_request_without_one_or_with_two(door, request_line):
    with socket.create_connection(("127.0.0.1", door.port), 60) as plain:
        plain.sendall(request_line.encode())
        assert plain.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "localhost.", "127.0.0.1:9", "[::1]:5006"])
def test_this_machines_own_names_do(door, host):
    assert door.get(headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", [f"http://{EVIL}", "null", "http://127.0.0.1:9", "http://localhost", "file://", "http://x@127.0.0.1", "http://["])
def test_a_foreign_page_gets_nothing(door, origin):
    for path in PATHS:
        assert door.get(path, headers={"Origin": origin}).status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        open_socket(door, door.session_token(), host=f"127.0.0.1:{door.port}", origin=origin)
    assert refused.value.response.status_code == 403


def test_a_websocket_needs_a_page(door):
    own = f"127.0.0.1:{door.port}"
    assert COMMAND in open_socket(door, door.session_token(), host=own, origin=f"http://{own}")
    for host, origin in ((own, None), (EVIL, f"http://{EVIL}"), (EVIL, f"http://{own}"), (own, f"http://localhost:{door.port}")):
        with pytest.raises(InvalidStatus):
            open_socket(door, door.session_token(), host=host, origin=origin)


def test_a_session_is_not_of_the_callers_making(door):
    own = f"127.0.0.1:{door.port}"
    forged = generate_jwt_token("x" * 44, signed=False, extra_payload={"headers": {"Host": own}, "cookies": {}, "arguments": {}})
    with pytest.raises(InvalidStatus):
        open_socket(door, forged, host=own, origin=f"http://{own}")
    pages = [door.get("/explorer?bokeh_session_id=mine&bokeh-session-id=mine").text for _ in range(2)]
    assert len({re.search(r'"token":"([^"]+)"', page)[1] for page in pages}) == 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),  # a link
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),  # another port of this machine
    ],
)
def test_other_sites_may_link_and_not_embed(door, headers, status):
    assert door.get(headers=headers).status_code == status


def test_every_answer_has_the_headers(door):
    for path in (*PATHS, "/docs", "/openapi.json", "/api/model/status"):
        for host in ("127.0.0.1", EVIL):
            response = door.get(path, headers={"Host": host})
            assert SAFE.items() <= dict(response.headers).items(), path
            policy = response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy
            assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_the_page_holds_no_cookie_and_no_header(door):
    """Bokeh writes what a request had into the page's token, which scripts can read."""
    sent = {"Cookie": "a=secret; b[=1; ü=2".encode(), "Authorization": b"Bearer secret", "Host": f"localhost:{door.port}".encode()}
    payload = get_token_payload(door.session_token(**sent))
    assert payload["headers"] == {"Host": f"localhost:{door.port}"} and not payload["cookies"]


# -- another address ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["explore", "serve"])
def outside(request, tmp_path_factory):
    """A server that other machines reach, started without a token."""
    served = Door(request.param, "--address", "0.0.0.0", data=tmp_path_factory.mktemp("data"), LENSPLORER_TOKEN="")
    yield served
    log = served.stop()
    assert "Traceback" not in log, log


def test_on_another_address_a_token_is_made_and_shown_once(outside):
    token = re.search(r"/explorer\?token=([\w-]{40,})", "".join(outside.said))[1]  # type: ignore[index]
    assert "".join(outside.said + outside.log).count(token) == 1
    for path in PATHS:
        assert outside.get(path).status_code == 401, path
        assert outside.get(path, headers={"Authorization": "Bearer " + token[:-1]}).status_code == 401
    with httpx.Client(base_url=outside.url, timeout=60) as client:
        assert client.get("/explorer", params={"token": token}).status_code == 303
        page = client.get("/explorer")
        assert page.status_code == 200
        session = re.search(r'"token":"([^"]+)"', page.text)[1]  # type: ignore[index]
    own = f"127.0.0.1:{outside.port}"
    with pytest.raises(InvalidStatus):
        open_socket(outside, session, host=own, origin=f"http://{own}")  # without the cookie


# -- panel serve ----------------------------------------------------------------------------------------------------------------------------


def test_panel_serve_shows_a_foreign_host_one_sentence(panel):
    own = f"localhost:{panel.port}"
    assert COMMAND in open_socket(panel, panel.session_token(Host=own), host=own, origin=f"http://{own}")
    evil = f"{EVIL}:{panel.port}"
    for origin in (f"http://{evil}", None):
        shown = open_socket(panel, panel.session_token(Host=evil), host=evil, origin=origin)
        assert "lensplorer explore --address" in shown and COMMAND not in shown


def test_panel_serve_believes_the_request_and_not_the_token(panel):
    """Its sessions are not signed: a page of another site could write a token that names a host of this machine."""
    own, evil = f"localhost:{panel.port}", f"{EVIL}:{panel.port}"
    forged = generate_jwt_token("y" * 44, signed=False, extra_payload={"headers": {"Host": own}, "cookies": {}, "arguments": {}}, expiration=300)
    shown = open_socket(panel, forged, host=evil, origin=f"http://{evil}")
    assert "lensplorer explore --address" in shown and COMMAND not in shown


def test_panel_serve_refuses_the_websocket_of_a_foreign_page(panel):
    own = f"localhost:{panel.port}"
    for origin in (f"http://{EVIL}", "http://localhost:9", "null"):
        with pytest.raises(InvalidStatus):
            open_socket(panel, panel.session_token(Host=own), host=own, origin=origin)
    framed = panel.session_token(**{"Host": own, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})
    assert COMMAND not in open_socket(panel, framed, host=own, origin=f"http://{own}")
