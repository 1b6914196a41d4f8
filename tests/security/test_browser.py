"""A real browser as another site's page would use it, and hostile texts in every field that reaches the page."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlencode

import pytest

from lensplorer.models import load_model
from tests import tiny
from tests.security.conftest import EVIL, Door
from tests.ui.conftest import PATIENCE, Tab
from tests.ui.screenshots import write_prompt

pytestmark = pytest.mark.browser

#: Does its worst as soon as it is read as HTML, and is told apart from what stands there otherwise.
HOSTILE = (
    "<img src=x onerror=\"window.stolen=1\"><script>window.stolen=1</script><svg onload='window.stolen=1'>\u202e\u2066\u200f';window.stolen=1;//"
)


@pytest.fixture(scope="module", params=["explore", "serve", "panel"])
def any_door(request, tmp_path_factory):
    served = Door(request.param, data=tmp_path_factory.mktemp("data"))
    yield served
    served.stop()


@pytest.fixture
def site():
    """(html) → the address of another site's page, on a server of its own that answers anything with it."""
    servers = []

    def serve(html: str, kind: str = "text/html") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://{EVIL}:{servers[-1].server_address[1]}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def attack(page, port: int) -> dict:
    """What the script of a page of another site gets from a server of this machine: by websocket, by fetch, and as a script."""
    return page.evaluate(
        """async (port) => {
          const got = {};
          for (const host of ["127.0.0.1", "localhost", location.hostname]) {
            got["socket " + host] = await new Promise((done) => {
              const socket = new WebSocket(`ws://${host}:${port}/explorer/ws`, ["bokeh", "x"]);
              socket.onopen = () => done("open"); socket.onerror = () => done("refused"); });
            got["fetch " + host] = await fetch(`http://${host}:${port}/explorer`).then((r) => r.status, () => "refused");
            got["script " + host] = await new Promise((done) => {
              const script = document.createElement("script");
              script.src = `http://${host}:${port}/static/js/bokeh.min.js`;
              script.onload = () => done("loaded"); script.onerror = () => done("refused");
              document.head.append(script); });
          }
          return got;
        }""",
        port,
    )


def test_a_page_of_another_site_gets_nothing(fooled, door, site):
    """Under the name of the other site, which stands for this machine, and under this machine's own names."""
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    assert page.goto(f"http://localhost:{door.port}/explorer").status == 200  # the browser can
    refused = page.goto(f"http://{EVIL}:{door.port}/explorer")
    assert refused.status == 403 and page.locator(".lensplorer").count() == 0
    page.goto(site("<p>a page of another site"))
    lax = int(site("1", "text/javascript").rpartition(":")[2].strip("/"))
    assert attack(page, lax)["script 127.0.0.1"] == "loaded"  # where nothing stands in the way
    got = attack(page, door.port)
    assert set(got.values()) == {"refused"}, got
    page.close()


def test_panel_serve_shows_a_page_of_another_name_one_sentence(fooled, panel):
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://{EVIL}:{panel.port}/explorer")
    page.get_by_text("does not answer under the host name").wait_for()
    assert page.locator(".lensplorer").count() == 0
    page.keyboard.press("m")
    assert page.get_by_role("dialog").count() == 0
    page.goto(f"http://localhost:{panel.port}/explorer")
    page.locator('.lensplorer[data-ready="true"]').wait_for()
    page.close()


def test_framed_by_another_site_it_shows_nothing(fooled, any_door, site):
    page = fooled.new_page()
    page.set_default_timeout(PATIENCE)
    frame = f"<iframe src='http://localhost:{any_door.port}/explorer' width=900 height=700></iframe>"
    with page.expect_response(f"http://localhost:{any_door.port}/explorer") as answered:
        page.goto(site(frame))
    shown = page.frame_locator("iframe")
    if any_door.kind == "panel":
        shown.get_by_text("not show or load it as a part of themselves").wait_for()
    else:
        assert answered.value.status == 403
    page.wait_for_timeout(1000)
    assert shown.locator(".lensplorer").count() == 0
    page.close()


def harmless(tab: Tab) -> None:
    """Nothing of it ran, and nothing of it became an element."""
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.stolen") is None
    assert tab.page.locator("img[src='x'], svg[onload], script:text('stolen')").count() == 0
    ran = [text for text in tab.complaints if "Content Security Policy" in text or "stolen" in text]
    assert not ran, ran


LINKS = (
    {"prompt": HOSTILE},
    {"model": HOSTILE},
    {"model": f"./{HOSTILE}"},
    {"view": HOSTILE, "prompt": "a"},
    {"ids": HOSTILE},
    {"ids": "9" * 5001},
    {"cursor": HOSTILE, "prompt": "a\0b"},
)


def test_hostile_texts_of_a_link(browser, any_door):
    for query in LINKS:
        tab = Tab(browser, f"http://localhost:{any_door.port}/explorer", query="?" + urlencode(query))
        if "model" in query:
            tab.page.get_by_text("onerror").first.wait_for()  # why it is not loaded names it
        else:
            tab.ready()
        harmless(tab)
        tab.close()


def test_hostile_texts_that_are_typed(browser, door):
    tab = Tab(browser, f"{door.url}/explorer").ready()
    write_prompt(tab, HOSTILE)
    tab.settle()
    assert HOSTILE[:4] in "".join(tab.page.locator(".token").all_inner_texts()).replace(" ", "")
    for key in ("m", "f", "/"):
        tab.press(key)
        tab.page.keyboard.insert_text(HOSTILE)
        tab.page.keyboard.press("Enter")
        tab.settle()
        harmless(tab)
        tab.press("Escape")
    tab.press("x")  # a session with that prompt, and the list of sessions
    harmless(tab)
    tab.close()


def test_hostile_tokens_and_a_hostile_folder(browser, tmp_path):
    """A model whose folder and whose vocabulary are hostile: both stand on the page."""
    folder = tiny.save("gpt2", tmp_path / "<img src=x onerror=window.stolen=1>")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    longest = max((word for word in vocabulary if word.isalpha()), key=len)
    evil = "<script>window.stolen=1</script>"
    content["model"]["vocab"] = {(evil if word == longest else word): index for word, index in vocabulary.items()}
    content["model"]["merges"] = [
        pair for pair in content["model"].get("merges", []) if longest not in ("".join(pair) if isinstance(pair, list) else pair.replace(" ", ""))
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    model = load_model(str(folder))
    assert evil in model.tokenizer.decode([vocabulary[longest]])
    served = Door("explore", "--model", str(folder), data=tmp_path / "data")
    try:
        tab = Tab(browser, f"{served.url}/explorer", query=f"?ids={vocabulary[longest]},{vocabulary[longest]}").ready()
        assert "stolen" in "".join(tab.page.locator(".token").all_inner_texts())
        harmless(tab)
        tab.close()
    finally:
        served.stop()
