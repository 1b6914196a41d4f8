"""The documentation of the API loads without a network, and describes every endpoint."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from lensplorer.analyses.base import REGISTRY
from lensplorer.server.settings import ServerSettings

MANUAL = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_names_no_other_host_and_its_files_are_here(client, page):
    text = client.get(page).text
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)
    files = [path for path in re.findall(r'(?:src|href|spec-url)="([^"]+)"', text) if not path.startswith("data:")]
    assert files
    for path in files:
        assert path.startswith("/") and client.get(path).status_code == 200, path
    assert page != "/docs" or '"validatorUrl": null' in text  # else Swagger asks a validator on another host


def test_the_document_describes_every_endpoint(client):
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert {"/api/model/status", "/api/model/load", "/api/preview", "/api/step", "/api/attribution"} <= set(paths)
    for name in client.get("/api/analyses").json():
        operation = paths[f"/api/analyses/{name}"]["post"]
        assert operation["summary"] in (REGISTRY[name].__doc__ or "") and "Returns:" in operation["description"]
        assert {"200", "400", "413", "422", "429"} <= set(operation["responses"])
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert not [path for path in paths if not path.startswith("/api/")]


def test_a_page_of_ones_own_is_served_at_the_root(serving, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<p>the page of the next-token visualization", encoding="utf-8")
    client = serving(page=page)
    assert client.get("/").text == page.read_text(encoding="utf-8") and client.get("/").headers["content-type"].startswith("text/html")


def test_the_manual_names_what_there_is(client):
    from lensplorer.server.command import serve_options

    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve_options).parameters} | {"--no-dashboard"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", MANUAL)) - {"--bf", "--clients", "--seconds"} <= options
    paths = client.get("/openapi.json").json()["paths"]
    described = re.findall(r"`(GET|POST) (/api/[a-z/]+)`", MANUAL)
    assert len(described) == 6 and all(method.lower() in paths[path] for method, path in described)
    defaults = ServerSettings()
    for said in ("(16)", "(600)", "(200)", "1,024", "2,000,000", "1 MiB"):
        assert said in MANUAL
    assert (defaults.queue_size, defaults.max_seconds, defaults.max_top_k, defaults.max_tokens) == (16, 600, 200, 1024)
    assert (defaults.max_values, defaults.max_body) == (2_000_000, 2**20)
