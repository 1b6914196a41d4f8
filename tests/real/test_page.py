"""The page in a browser, on the real model."""

from __future__ import annotations

import pytest

import lensplorer as lp
from lensplorer.dashboard.panels import PANELS
from tests.ui.conftest import Server, Tab

PROMPT = "When Mary and John went to the store, John gave a drink to"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tab(real_file, browser, tmp_path_factory):
    """A page that begins with the sentence. It complains of nothing and asks no other host."""
    prompt = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    prompt.write_text(PROMPT, encoding="utf-8")
    server = Server("--model", str(real_file), "--input", str(prompt), "--seed", "1", data=tmp_path_factory.mktemp("data"))
    try:
        opened = Tab(browser, server.url).ready()
        yield opened
        opened.close()
        assert opened.complaints == []
        assert opened.hosts == {"127.0.0.1"}
    finally:
        server.stop()


def shown(tab, count=5):
    """(token, probability in %) of the first candidates."""
    rows = [row.locator("td").all_inner_texts() for row in tab.locator(".candidates tbody tr").all()[:count]]
    return [(row[1].strip(), float(row[3].removesuffix(" %"))) for row in rows]


def test_the_candidates_are_the_model_s(tab, real):
    trace = lp.run_trace(real, PROMPT, reads=[])
    assert tab.ids == trace.tokens.tolist()
    expected = lp.next_token(trace, k=5)
    assert shown(tab)[0][0] == "Mary"
    for (token, percent), wanted, probability in zip(shown(tab), expected.token.values, expected.probability.values):
        assert token == wanted.strip() and percent == pytest.approx(100 * float(probability), abs=0.06)
    chip = tab.locator(".chip").first.inner_text()
    assert "SmolLM2-135M-Instruct" in chip and "Δ" in chip


def test_the_panels_show_numbers_and_no_error(tab):
    """Each that is open on a new page: drawn, or, where it is long on this machine, waiting with its cost; features without an SAE are none."""
    for name, panel in PANELS.items():
        if not panel.is_open:
            continue
        frame = tab.panel(name)
        tab.settle()
        state, note = frame.get_attribute("data-state"), frame.locator(".note").inner_text()
        if name == "features":
            assert (state, note) == ("empty", "No SAE is loaded.")
        elif state == "waiting":
            assert name not in ("timeline", "lens", "decomposition", "attention") and "on this machine" in note, (name, note)
        else:
            assert state == "drawn", (name, state, note)
            texts = frame.locator("svg text").evaluate_all("all => all.map(each => each.textContent)")
            assert any(any(character.isdigit() for character in text) for text in texts), (name, texts)


def test_a_candidate_is_appended_and_taken_back(tab, real):
    before, candidates = tab.ids, shown(tab)
    tab.press("l")
    assert tab.ids == [*before, *real.tokenizer.encode(" Mary", add_special_tokens=False)]
    expected = lp.next_token(lp.run_trace(real, PROMPT + " Mary", reads=[]), k=1)
    assert shown(tab)[0] == (str(expected.token.values[0]).strip(), pytest.approx(100 * float(expected.probability[0]), abs=0.06))
    tab.press("h")
    assert tab.ids == before and shown(tab) == candidates
