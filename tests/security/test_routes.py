"""Every route of both applications, every method, with rubbish in every part of the path, the query and the body: no failure, no traceback."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from lensplorer.dashboard.options import Options
from lensplorer.server.app import create_app
from lensplorer.server.dashboard import add_dashboard, create_page
from lensplorer.server.models import ModelStore
from lensplorer.server.settings import ServerSettings

pytestmark = pytest.mark.filterwarnings("ignore:The .* HTTPServerRequest:DeprecationWarning")  # Panel's own, of Tornado

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE")
DEEP = "[" * 100_000
LONG = "9" * 5001
PARTS = ("x", "%00", "%ff", "..%2f..%2fetc%2fpasswd", "a" * 3000, "%0d%0aX-A:%20b", "{}", "%ed%a0%80", ".", "%2e%2e")
QUERIES = (
    "",
    f"ids={LONG}",
    f"ids={'[' * 3000}",
    "model=%00&prompt=%ff",
    "bokeh_session_id=",
    "bokeh-session-id=&cursor=-1",
    "a[]=1&a=%ed%a0%80",
    "token=x",
    "&&==",
)
BODIES: tuple[tuple[str, bytes], ...] = (
    ("application/json", b""),
    ("application/json", b"null"),
    ("application/json", DEEP.encode()),
    ("application/json", b'{"prompt": ' + LONG.encode() + b"}"),
    ("application/json", b'{"prompt": "\xff"}'),
    ("application/json", rb'{"\ud800": 1, "prompt": "\ud800"}'),
    ("application/json", rb'{"prompt": "a", "interventions": [{"kind": "Ablation", "\ud800": 1}, {"\ud800": "\ud800"}]}'),
    ("application/json", rb'{"prompt": "a", "interventions": [{"kind": "\ud800"}]}'),
    (
        "application/json",
        json.dumps({"prompt": "a", "constraint": {"enabled": True, "type": "json_schema", "schema": '{"not":' * 900 + "{}" + "}" * 900}}).encode(),
    ),
    ("application/json", json.dumps({"prompt": "a", "constraint": {"enabled": True, "type": "json_schema", "schema": "[" * 9000}}).encode()),
    ("application/json", json.dumps({"prompt": "a", "constraint": {"enabled": True, "schema": "[" * 9000}}).encode()),
    ("application/json", json.dumps({"model_id": "~nobody-of-this-name/" + "x" * 400}).encode()),
    ("application/json", json.dumps({"model_id": "x" * 400 + "/y"}).encode()),
    ("text/plain", b"{}"),
    ("multipart/form-data", b"--x"),
    ("\xff", b"{}"),
)


@pytest.fixture(scope="module")
def applications(storyworld):
    """(name → client) of the API with the dashboard, and of the dashboard alone."""
    settings = ServerSettings(model="storyworld", allowed_models=("storyworld",))
    store = ModelStore(settings)
    store.keep(storyworld)
    whole = create_app(settings, model=storyworld, store=store)
    add_dashboard(whole, Options(model="storyworld"), store)
    apps = {"serve": whole, "explore": create_page(settings, Options(model="storyworld"), store)}
    clients = {name: TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) for name, app in apps.items()}
    with clients["serve"], clients["explore"]:
        yield clients


def paths(client):
    """Every path of an application, rubbish for its parameters, and what lies below and beside it."""
    found = []

    def walk(routes, prefix):
        for route in routes:
            path = getattr(route, "path", None)
            if path is None:  # a router that was included
                walk(route.original_router.routes, prefix)
            elif isinstance(route, Mount):
                found.extend(f"{prefix}{path}/{part}" for part in PARTS)
            elif "{" in path:
                found.extend(prefix + re.sub(r"\{[^}]*\}", "/".join(parts), path) for n in range(1, 6) for parts in itertools.combinations(PARTS, n))
            else:
                found.extend([prefix + path, f"{prefix}{path}/", f"{prefix}{path}/%00"])

    walk(client.app.routes, "")
    return list(dict.fromkeys(found))


def check(response, asked):
    assert response.status_code < 500, (asked, response.text[:300])
    assert "Traceback" not in response.text, asked
    if response.status_code >= 400 and response.request.method != "HEAD":
        assert set(response.json()) == {"detail"}, asked


@pytest.mark.parametrize("name", ["serve", "explore"])
def test_every_path_with_every_method(applications, name, caplog):
    client = applications[name]
    asked = paths(client)
    assert len(asked) > 500 and "/explorer" in asked and (name == "explore" or ("/api/step" in asked and "/api/analyses/token_scores" in asked))
    for path in asked:
        check(client.get(path), path)
    for path in [path for path in asked if "components" not in path]:
        for method in METHODS:
            check(client.request(method, path), (method, path))
    assert "Failure" not in caplog.text


@pytest.mark.parametrize("name", ["serve", "explore"])
def test_every_query(applications, name, caplog):
    client = applications[name]
    for path in [path for path in paths(client) if "%" not in path and "components" not in path]:
        for query in QUERIES:
            check(client.get(f"{path}?{query}"), (path, query))
    assert "Failure" not in caplog.text


def test_every_body(applications, caplog):
    client = applications["serve"]
    for path in [path for path in paths(client) if path.startswith("/api/") and "%" not in path]:
        for kind, body in BODIES:
            check(client.post(path, content=body, headers={"Content-Type": kind.encode("latin-1")}), (path, body[:60]))
    assert "Failure" not in caplog.text


@pytest.mark.parametrize("name", ["serve", "explore"])
@pytest.mark.parametrize(
    "path",
    [
        "/static/{}etc/passwd",
        "/static/js/{}etc/passwd",
        "/static/extensions/panel/{}etc/passwd",
        "/components/{}etc/passwd",
        "/explorer/{}etc/passwd",
    ],
)
@pytest.mark.parametrize(
    "up", ["../" * 12, "..%2f" * 12, "%2e%2e/" * 12, "..%5c" * 12, "....//" * 12, "/", "%2f", "%252e%252e%252f" * 12, "/file:///"]
)
def test_no_path_leads_out(applications, name, path, up):
    response = applications[name].get(path.format(up))
    assert response.status_code in (400, 403, 404) and "root:" not in response.text


@pytest.mark.parametrize("name", ["serve", "explore"])
def test_no_module_is_imported_by_name(applications, name):
    import sys

    for module in ("antigravity", "this", "idlelib.idle", "lensplorer.storyworld.__main__", "panel.__main__"):
        sys.modules.pop(module, None)
        for rest in ("a/b/c", "_resources/x", "x/_resources", "x/__css__/y"):
            assert applications[name].get(f"/components/{module}/{rest}").status_code == 404
        assert module not in sys.modules


def test_what_was_not_foreseen_gets_an_id_below_fastapi_too(applications, monkeypatch, caplog):
    from lensplorer.dashboard import page

    def broken(*arguments, **options):
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(page, "build_page", broken)
    for name, client in applications.items():
        caplog.clear()
        monkeypatch.setattr("lensplorer.server.dashboard._component_file", broken)
        response = client.get("/components/x/y/z/w")
        assert response.status_code == 500 and "secret" not in response.text, name
        number = re.search(r"under (\w{8})\.", response.json()["detail"])[1]  # type: ignore[index]
        assert f"Failure {number}" in caplog.text and "a secret detail" in caplog.text
        assert response.headers["X-Frame-Options"] == "DENY"
