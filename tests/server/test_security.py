"""Who may come in, and how much a request may ask."""

from __future__ import annotations

import pytest
from starlette.websockets import WebSocketDisconnect

from lensplorer.errors import ConfigError
from lensplorer.server.security import COOKIE
from lensplorer.server.settings import ServerSettings

TOKEN = "a token that nobody can guess"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def elsewhere(serving):
    """A client of a server that other machines reach."""
    return serving(url="http://example.org", address="0.0.0.0", token=TOKEN)


# -- token ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_another_address_needs_a_token(address):
    with pytest.raises(ConfigError, match="--token"):
        ServerSettings(address=address)
    with pytest.raises(ConfigError, match="16"):
        ServerSettings(address=address, token="short")
    assert not ServerSettings(address=address, token=TOKEN).is_local


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(address):
    assert ServerSettings(address=address).is_local


@pytest.mark.parametrize("path", ["/api/model/status", "/docs", "/openapi.json", "/nonsense", "/static-offline-docs/swagger-ui.css"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"{COOKIE}={TOKEN}"}])
def test_without_the_token_nothing_is_shown(elsewhere, path, headers):
    elsewhere.cookies.clear()
    response = elsewhere.get(path, headers=headers)
    assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer" and set(response.json()) == {"detail"}


def test_the_token_is_compared_whole_and_in_any_encoding(elsewhere):
    elsewhere.cookies.clear()
    assert elsewhere.get("/api/model/status", headers=BEARER).status_code == 200
    assert elsewhere.get("/api/model/status", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "\xff" * 30):
        assert elsewhere.get("/api/model/status", headers={"Authorization": f"Bearer {wrong}".encode("latin-1")}).status_code == 401


def test_a_browser_shows_it_once_and_gets_a_cookie(elsewhere):
    elsewhere.cookies.clear()
    opened = elsewhere.get("/docs", params={"token": TOKEN, "x": "1"}, follow_redirects=False)
    assert opened.status_code == 303 and opened.headers["location"] == "/docs?x=1"
    cookie = opened.headers["set-cookie"]
    assert TOKEN not in cookie and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert elsewhere.get("/docs").status_code == 200  # the client keeps the cookie
    elsewhere.cookies.clear()
    assert elsewhere.get("/docs", params={"token": "wrong"}).status_code == 401
    assert elsewhere.post("/api/preview", params={"token": TOKEN}, json={}).status_code == 401  # only to open a page
    assert elsewhere.get("http://example.org//evil.com/x", params={"token": TOKEN}, follow_redirects=False).headers["location"] == "/evil.com/x"


# -- host and origin -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_this_machine_answers_under_its_own_names(client, host):
    assert client.get("/api/model/status", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "", "localhost.evil.com", "[::1].evil.com", "192.168.1.5"])
def test_and_under_no_other(client, host):
    response = client.get("/api/model/status", headers={"Host": host})
    assert response.status_code == 403 and set(response.json()) == {"detail"}


def test_hosts_allowed_by_name(serving):
    client = serving(address="0.0.0.0", token=TOKEN, allowed_hosts=("lens.example.org",))
    for host, status in (("lens.example.org:80", 200), ("evil.com", 403), ("127.0.0.1", 200), ("0.0.0.0:80", 200)):
        assert client.get("/api/model/status", headers={"Host": host, **BEARER}).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1:9999", "http://[", "file://"])
def test_pages_of_other_sites_may_not_use_it(client, origin):
    assert client.post("/api/preview", json={"prompt": "a"}, headers={"Origin": origin}).status_code == 403
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/explorer/ws", headers={"Origin": origin}):
        pass
    assert refused.value.code == 1008


def test_its_own_pages_may_and_cors_is_off(client):
    response = client.post("/api/preview", json={"prompt": "a"}, headers={"Origin": "http://127.0.0.1:8000"})
    assert response.status_code == 200 and not [name for name in response.headers if name.startswith("access-control")]
    preflight = {"Origin": "http://evil.com", "Access-Control-Request-Method": "POST"}
    assert client.options("/api/preview", headers=preflight).status_code == 403


def test_a_page_allowed_by_name_may(serving):
    client = serving(cors_origins=("https://example.org",))
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert client.options("/api/preview", headers=headers).headers["access-control-allow-origin"] == "https://example.org"
    assert client.post("/api/preview", json={"prompt": "a"}, headers={"Origin": "https://example.org"}).status_code == 200
    assert client.post("/api/preview", json={"prompt": "a"}, headers={"Origin": "https://evil.org"}).status_code == 403


def test_a_form_of_another_page_is_no_json(client):
    """What a page can send without asking first (text/plain) is not read as JSON."""
    assert client.post("/api/preview", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}).status_code == 422


# -- size -----------------------------------------------------------------------------------------------------------------------------------


def test_a_huge_body_is_refused_before_it_is_read(serving):
    client = serving(max_body=1000)
    assert client.post("/api/preview", json={"prompt": "a" * 900}).status_code in (200, 400)
    assert client.post("/api/preview", json={"prompt": "a" * 1000}).status_code == 413
    sent = []

    def pieces():
        for _ in range(1000):
            sent.append(1)
            yield b"a" * 100

    response = client.post("/api/preview", content=pieces())  # without a length in front
    assert response.status_code == 413 and set(response.json()) == {"detail"}
    for length in ("9" * 30, "-1", "x"):
        assert client.post("/api/preview", content=b"{}", headers={"Content-Length": length}).status_code in (400, 413, 422)


def test_limits_are_at_least_one():
    for limit in ("queue_size", "max_seconds", "max_body", "max_tokens", "max_top_k", "max_values"):
        with pytest.raises(ConfigError, match=limit):
            ServerSettings(**{limit: 0})


def test_tokens_are_limited(serving):
    client = serving(max_tokens=8)
    assert client.post("/api/preview", json={"prompt": "a", "use_chat_template": False, "completion_ids": [5] * 6}).status_code == 200
    for path, body in (
        ("/api/preview", {"prompt": "a", "use_chat_template": False, "completion_ids": [5] * 9}),
        ("/api/step", {"prompt": "a", "use_chat_template": False, "force_text": " Once upon a time there was a boy"}),
        ("/api/attribution", {"prompt": "a", "completion_ids": [5] * 9, "target_index": 1, "method": "attention"}),
        ("/api/analyses/token_scores", {"prompt": [5] * 9}),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 413 and "8" in response.json()["detail"], path


# -- errors ---------------------------------------------------------------------------------------------------------------------------------


def test_a_bug_shows_no_traceback(serving, monkeypatch, caplog):
    from lensplorer.server import generation

    def broken(*arguments):
        raise ZeroDivisionError("secret detail")

    client = serving()
    monkeypatch.setattr(generation, "preview", broken)
    response = client.post("/api/preview", json={"prompt": "a"})
    assert response.status_code == 500 and "secret" not in response.text and "Traceback" not in response.text
    number = response.json()["detail"].rpartition(" ")[2].rstrip(".")
    [record] = [record for record in caplog.records if number in record.getMessage()]
    assert "/api/preview" in record.getMessage() and "secret detail" in caplog.text


@pytest.mark.parametrize(("method", "path", "status"), [("get", "/nonsense", 404), ("get", "/api/preview", 405), ("put", "/api/step", 405)])
def test_other_errors_are_json_too(client, method, path, status):
    response = getattr(client, method)(path)
    assert response.status_code == status and set(response.json()) == {"detail"}
