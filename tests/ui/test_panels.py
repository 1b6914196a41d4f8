"""The panels in a real browser: what they show is the library's, what they give away is what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lensplorer as lp
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.panels import PANELS
from lensplorer.session import Session
from tests.ui.conftest import PATIENCE, Tab

START = Options().prompt
STORY = "When Mary and John went to the shop, John gave the book to"


@pytest.fixture
def session(storyworld):
    return Session(storyworld, START)


def drawn(tab: Tab, name: str) -> None:
    tab.settle()
    tab.page.locator(f"[data-panel='{name}'][data-state='drawn']").wait_for()


def texts(panel) -> list[str]:
    return panel.locator("svg text").evaluate_all("all => all.map(each => each.textContent)")


def test_the_panels_on_a_new_page_are_drawn(tab, session):
    for name, panel in PANELS.items():
        if panel.is_open:
            tab.panel(name)
            drawn(tab, name)
    shown = texts(tab.panel("decomposition"))
    target = int(lp.next_token(session.trace(), k=1).token_id[0])
    parts = lp.residual_decomposition(session.trace(), target)
    for name, value in zip(parts.component.values, parts.contribution.values):
        label = f"{float(value):.3g}".replace("-", "−")
        assert str(name) in shown
        assert any(text.startswith(label[:4]) for text in shown), (name, label, shown)
    lens = texts(tab.panel("lens"))
    top = lp.logit_lens(session.trace()).top_token.values[-1, -1, 0]
    assert str(top).replace(" ", "␣") in lens


def test_every_panel_opens_draws_and_closes(tab):
    tab.press("d", "l")
    for name in PANELS:
        panel = tab.panel(name)
        panel.locator(".bar h2").hover()
        if panel.get_attribute("data-state") == "waiting":
            tab.press("r")
        state, said = panel.get_attribute("data-state"), panel.locator(".note").inner_text()
        assert state in ("drawn", "empty") or (name == "patching" and "as many tokens" in said), (name, said)
    assert tab.page.locator(".panel").count() == len(PANELS)
    close = tab.panel("sampling")
    close.hover()
    close.get_by_role("button", name="Close").click()
    tab.settle()
    assert tab.page.locator("[data-panel='sampling']").count() == 0


def test_a_control_changes_its_panel_alone(tab, session):
    panel = tab.panel("attention")
    drawn(tab, "attention")
    tab.control("attention", "show").select_option("one head")
    tab.settle()
    panel.get_by_text("Attention pattern of head 0.0").wait_for()
    tab.control("attention", "layer").fill("2")
    tab.press("Enter")
    panel.get_by_text("Attention pattern of head 2.0").wait_for()
    tab.control("attention", "layer").fill("9999")
    tab.press("Enter")
    assert "expected 0 to 999" in tab.locator("footer .message").inner_text()
    assert len(tab.press("l").ids) == len(session.ids) + 1  # the keys are free again


def test_a_click_on_a_pattern_says_why(tab, session):
    panel = tab.panel("attention")
    drawn(tab, "attention")
    tab.control("attention", "show").select_option("one head")
    tab.settle()
    panel.get_by_text("Attention pattern of head 0.0").wait_for()
    box = panel.locator("svg .hit").bounding_box()
    tab.page.mouse.click(box["x"] + 3, box["y"] + box["height"] - 3)  # the last query, the first source
    panel.get_by_text(re.compile(rf"^Why head 0\.0 reads .* \(0\) from .*\({len(session.ids) - 1}\)$")).wait_for()
    assert panel.locator("table tbody tr").count() > 1
    why = lp.qk_attribution(session.trace(), layer=0, head=0, source=0)
    assert f"weight {float(why.pattern):.3g}" in panel.locator(".note").inner_text()


def test_pointing_at_figures(tab, session):
    panel = tab.panel("lens")
    drawn(tab, "lens")
    box = panel.locator("svg .hit").bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 8)
    said = tab.locator(".tip:visible").inner_text()
    lens = lp.logit_lens(session.trace())
    share = float(lens.top_probability[-1, -1, 0])
    assert "layer" in said and f"{100 * share:.1f}"[:3] in said
    assert tab.locator(".token.pointed").get_attribute("data-position") == str(len(session.ids) - 1)
    tab.page.mouse.move(5, 300)
    assert tab.locator(".token.pointed").count() == 0


def test_the_text_takes_the_colours_of_the_bar_that_is_pointed_at(tab, session):
    tab.press("1")
    coloured = tab.locator(".token[style*=background]")
    assert coloured.count() == 0
    panel = tab.panel("decomposition")
    tab.control("decomposition", "contribution").select_option("total")
    tab.settle()
    panel.get_by_text(re.compile(": total contributions$")).wait_for()
    panel.locator("rect.datum[data-row='0']").first.hover()
    target = int(lp.next_token(session.trace(), k=1).token_id[0])
    parts = lp.component_attribution(session.trace(), target)
    assert coloured.count() == len(session.ids)
    shown = f"{float(parts.total.sel(component='embed').sum()):.3g}".replace("-", "−")
    assert shown[:4] in tab.locator(".tip:visible").inner_text()
    tab.page.mouse.move(5, 300)
    assert coloured.count() == 0
    panel = tab.panel("attribution")
    drawn(tab, "attribution")
    panel.locator("rect.hit").nth(2).hover()
    assert coloured.count() == len(session.ids)


def test_an_attribution_says_what_is_no_tokens_and_is_held_against_the_next_candidate(tab, session):
    panel = tab.panel("attribution")
    drawn(tab, "attribution")
    first, second = map(int, lp.next_token(session.trace(), k=2).token_id)
    for versus in (None, second):
        result = lp.attribute(session.trace(), first, versus=versus, method="linear")
        panel.get_by_text(f"positions {result.attrs['rest_positions']:+.3g}"[:14]).wait_for()
        tab.control("attribution", "against").select_option("best other")
        tab.settle()
    assert "−" in panel.locator("h2").inner_text()


def test_copy_as_python_gives_the_numbers(tab, session):
    panel = tab.panel("decomposition")
    drawn(tab, "decomposition")
    panel.hover()
    panel.get_by_role("button", name=re.compile("copy and save")).click()
    panel.get_by_role("menuitem", name="Copy as Python").click()
    tab.settle()
    script = tab.locator(".lensplorer").get_attribute("data-copied")
    space: dict[str, object] = {}
    exec(compile(script, "copied", "exec"), {"print": lambda *said: None}, space)
    target = int(lp.next_token(session.trace(), k=1).token_id[0])
    assert float(abs(space["result"].contribution - lp.residual_decomposition(session.trace(), target).contribution).max()) < 1e-3


@pytest.mark.parametrize(
    ("item", "name", "start"), [("SVG", "svg", b"<svg"), ("PNG", "png", b"\x89PNG"), ("CSV", "csv", b"component"), ("HTML", "html", b"<!DOCTYPE")]
)
def test_saving_a_figure_and_its_data(tab, item, name, start):
    panel = tab.panel("decomposition")
    drawn(tab, "decomposition")
    panel.hover()
    panel.get_by_role("button", name=re.compile("copy and save")).click()
    with tab.page.expect_download() as waiting:
        panel.get_by_role("menuitem", name=re.compile(f"as {item}$")).click()
    assert waiting.value.suggested_filename == f"lensplorer-decomposition.{name}"
    data = Path(waiting.value.path()).read_bytes()
    assert data.lstrip()[: len(start)] == start and len(data) > 200
    if name == "html":
        assert not re.search(rb"<(script|link|img)[^>]+(src|href)=.http", data)


def test_interventions_change_every_view_and_come_off(tab, session):
    before = tab.locator(".candidates td.name").all_inner_texts()
    tab.panel("interventions")
    tab.control("interventions", "kind").select_option("ablate layer")
    tab.settle()
    tab.control("interventions", "layer").fill("3")
    tab.press("Enter")
    tab.locator("[data-panel='interventions'] [data-do='intervene']").click()
    tab.settle()
    session.intervene(lp.ablate_layer(3))
    expected = [str(token).strip() for token in lp.next_token(session.trace(), k=30).token.values]
    assert [text.strip() for text in tab.locator(".candidates td.name").all_inner_texts()] == expected != [text.strip() for text in before]
    assert "ablate" in tab.locator(".changes").inner_text()
    drawn(tab, "interventions")
    tab.press("u")
    assert tab.locator(".candidates td.name").all_inner_texts() == before
    assert tab.locator(".changes li").count() == 0


def test_sampling_settings_and_constraints(tab, session):
    rail = tab.locator(".rail")
    rail.get_by_label("Preset").select_option("greedy")
    tab.settle()
    session.decoding = lp.DecodingParams.preset("greedy", seed=1)
    tab.press(" ", " ")
    session.sample_step(2)
    assert tab.ids == list(session.ids)
    rail.locator("[name='temperature']").fill("-1")
    tab.press("Enter")
    assert "temperature" in tab.locator("footer .message").inner_text()
    rail.get_by_text("Constraint", exact=True).click()
    rail.get_by_label("Constraint", exact=True).fill(" red| blue")
    rail.get_by_text("Constrain from here").click()
    tab.settle()
    assert "invalid" in tab.locator(".candidates td.final").all_inner_texts()
    for _ in range(8):  # a choice may be several tokens long
        tab.press(" ")
    assert tab.locator(".prompts .current .text").inner_text().endswith((" red", " blue"))
    assert "constraint complete" in rail.inner_text()
    rail.get_by_text("Lift").click()
    tab.settle()
    assert "invalid" not in tab.locator(".candidates td.final").all_inner_texts()


def test_features_by_key_and_button(tab):
    tab.locator(".chip", has_text="resid").wait_for()
    tab.press("f")
    dialog = tab.get_by_role("dialog", name="SAEs")
    dialog.get_by_text("storyworld/resid_3").wait_for()
    dialog.get_by_role("textbox").fill("gpt2-small res-jb blocks.8.hook_resid_pre")
    dialog.get_by_text("gpt2-small-res-jb").first.wait_for()
    tab.press("Escape", "9", "e")
    assert tab.view == "features"
    before = tab.locator(".chip").nth(1).inner_text()
    tab.press("p")
    assert tab.locator(".chip").nth(1).inner_text() != before
    panel = tab.panel("features")
    drawn(tab, "features")
    panel.get_by_role("button", name="show").nth(1).click()
    tab.settle()
    feature = panel.locator("tbody tr").nth(1).locator("td").first.inner_text()
    panel.locator(".marked", has_text=feature).wait_for()


def test_a_selection_by_dragging(tab, session):
    tokens = tab.locator(".token")
    tokens.nth(2).hover()
    tab.page.mouse.down()
    tokens.nth(4).hover()
    tab.page.mouse.up()
    assert tab.locator(".token.picked").count() == 3
    surprisal = float(lp.token_scores(session.trace()).surprisal[2:5].sum())
    assert f"3 tokens, {surprisal:.3g}"[:13] in tab.locator("footer").inner_text()
    tokens.nth(1).click()
    tab.settle()
    assert tab.locator(".token.picked").count() == 0 and tab.cursor == 1


def test_maximise_arrange_and_the_rail(tab):
    panel = tab.panel("lens")
    panel.locator("h2").hover()
    tab.press("Shift+M")
    assert tab.locator(".panel:visible").count() == 1
    tab.press("Shift+M")
    assert tab.locator(".panel:visible").count() > 3
    first = tab.locator(".panel").first.get_attribute("data-panel")
    tab.locator("[data-panel='lens'] h2").drag_to(tab.locator(f"[data-panel='{first}'] h2"))
    tab.settle()
    assert tab.locator(".panel").first.get_attribute("data-panel") == "lens"
    wide = tab.locator(".rail").bounding_box()["width"]
    tab.press("\\")
    assert tab.locator(".rail").bounding_box()["width"] < wide / 3
    tab.press("\\")


def test_a_reload_resumes(tab):
    tab.locator(".chip", has_text="resid").wait_for()
    tab.press("l", "l", "d", "j", "l", "c", "Control+k", "3")
    tab.panel("contrast")
    state = (tab.ids, tab.cursor, tab.view, tab.locator(".prompts li").count(), tab.locator(".panel").count())
    tab.page.wait_for_timeout(600)  # the autosave comes after the last panel
    tab.page.reload()
    tab.ready()
    tab.page.locator("[data-panel='contrast']").wait_for()
    assert (tab.ids, tab.cursor, tab.view, tab.locator(".prompts li").count(), tab.locator(".panel").count()) == state


def test_a_link_brings_the_page_back(tab, browser, server):
    tab.press("l", "l", "c", "Control+k", "4", "y")
    link = tab.locator(".lensplorer").get_attribute("data-copied")
    other = Tab(browser, link).ready()
    other.page.locator(".tabs [data-view='influence'][aria-selected='true']").wait_for()
    assert (other.ids, other.cursor, other.view) == (tab.ids, tab.cursor, tab.view)
    other.close()


def test_saved_sessions_are_opened(tab):
    tab.press("l", "l", "x")
    ids = tab.ids
    tab.press("h", "h", "h", "Shift+X")
    dialog = tab.get_by_role("dialog", name="Saved sessions")
    dialog.get_by_role("row").filter(has_not_text="autosave").first.get_by_role("button").click()
    tab.page.wait_for_function("n => [...document.querySelectorAll('*')].some(() => true)", arg=len(ids))
    tab.settle()
    assert tab.ids == ids


def test_the_model_off_and_on(tab, session):
    tab.press("o")
    assert "model is off" in tab.locator(".strip .note").inner_text()
    tab.press("h")
    assert tab.ids == list(session.ids)[:-1]
    tab.press("o")
    tab.locator(".candidates tbody tr").first.wait_for()


def test_a_chat_goes_through_the_template(tab, storyworld):
    tab.press("Shift+I")
    dialog = tab.get_by_role("dialog", name="Chat")
    dialog.get_by_label("System prompt").fill("You are kind.")
    dialog.get_by_label("User prompt").fill("What is two plus two?")
    tab.press("Control+Enter")
    dialog.wait_for(state="hidden")
    session = Session(storyworld)
    session.set_prompt([{"role": "system", "content": "You are kind."}, {"role": "user", "content": "What is two plus two?"}])
    assert tab.ids == list(session.ids)


def test_the_tour_has_five_steps(tab):
    tab.press("?")
    tab.get_by_role("dialog", name="Keys").get_by_text("The tour again").click()
    tour = tab.get_by_role("dialog", name="Tour")
    for step in range(1, 6):
        assert f"{step} of 5" in tour.inner_text()
        box = tour.bounding_box()
        assert box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= 1440 and box["y"] + box["height"] <= 900
        tour.get_by_role("button").first.click()
    assert tour.is_hidden()


def test_a_long_prompt_scrolls_and_steps(tab, storyworld):
    n_ctx = lp.model_info(storyworld).n_ctx
    tab.press("i")
    tab.get_by_role("dialog", name="Prompt").get_by_role("textbox").fill("Once upon a time there was a cat. " * 60)
    tab.press("Control+Enter")
    dialog = tab.get_by_role("dialog", name="Prompt")
    if dialog.is_visible():  # more tokens than the context holds
        dialog.get_by_text("Keep the end").click()
    tab.get_by_role("dialog", name="Prompt").wait_for(state="hidden")
    assert 400 < len(tab.ids) <= n_ctx
    n = len(tab.ids)
    tab.press("h", "h", "l", "c", "Control+0", "Control+$")
    assert tab.cursor == len(tab.ids) - 1 and abs(len(tab.ids) - n) <= 2
    strip = tab.locator(".tokens").bounding_box()
    assert strip["height"] < 230


def test_two_hundred_keys_leave_no_backlog(tab, session):
    for _ in range(40):
        for key in ("j", "l", "k", "h", "e"):
            tab.page.keyboard.press(key)
    tab.settle()
    assert tab.ids == list(session.ids)
    assert tab.view == "probability"  # forty steps round ten views


def test_the_options_reach_the_page(browser):
    from tests.ui.conftest import Server

    served = Server("--layer-prob", "--cross-layer", "--seed", "1")
    try:
        tab = Tab(browser, served.url).ready()
        tab.locator(".layered").first.wait_for()
        tab.page.locator("[data-panel='features']").scroll_into_view_if_needed()
        tab.page.locator("[data-panel='features']").get_by_text("through the layers").wait_for(timeout=PATIENCE)
        assert tab.complaints == []
        tab.close()
    finally:
        served.stop()
