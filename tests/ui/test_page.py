"""Whole journeys in a real browser on the built-in model, compared with the library."""

from __future__ import annotations

import random

import pytest

from lensplorer.analyses.scores import next_token, token_scores
from lensplorer.dashboard.actions import COMMANDS
from lensplorer.dashboard.options import Options
from lensplorer.models import model_info
from lensplorer.session import Session
from lensplorer.tokens import visible
from tests.ui.conftest import PATIENCE, Tab

START = Options().prompt


@pytest.fixture
def session(storyworld):
    return Session(storyworld, START)


def candidates(session):
    return next_token(session.trace(), k=30, position=session.position)


def test_the_first_picture_is_the_library_s(tab, session):
    assert tab.ids == list(session.ids)
    expected = candidates(session)
    rows = tab.locator(".candidates tbody tr")
    assert rows.count() == 30
    shown = rows.first.locator("td").all_inner_texts()
    assert shown[0] == "1" and shown[1].strip() == str(expected.token.values[0]).strip()
    assert shown[3] == f"{100 * float(expected.probability[0]):.1f} %"
    assert float(shown[5].replace("−", "-")) == pytest.approx(float(expected.logit[0]), abs=0.006)
    assert float(shown[6].replace("−", "-")) == pytest.approx(float(expected.z_score[0]), abs=0.006)
    chip = tab.locator(".chip").first.inner_text()
    assert "storyworld" in chip and "Δ" in chip and "toy world" in chip


def test_the_value_of_a_token_on_hover(tab, session):
    tab.locator(".token").nth(3).hover()
    said = tab.locator(".tip:visible").inner_text()
    scores = token_scores(session.trace())
    assert f"{100 * float(scores.probability[3]):.1f} %" in said
    assert str(int(scores["rank"][3])) in said and str(session.ids[3]) in said
    tab.locator(".token").first.hover()
    assert "No prediction" in tab.locator(".tip:visible").inner_text()


def test_a_hundred_fast_presses_end_in_the_right_place(tab, session):
    chance = random.Random(5)
    keys = chance.choices(["j", "k", "l", "h", "ArrowDown", "ArrowRight"], [4, 1, 4, 1, 2, 2], k=100)
    selected = 0
    for key in keys:
        if key in ("j", "ArrowDown"):
            selected = min(29, selected + 1)
        elif key == "k":
            selected = max(0, selected - 1)
        elif key == "h":
            session.pop()
            selected = 0
        else:
            session.append(int(candidates(session).token_id[selected]))
            selected = 0
    for key in keys:
        tab.keyboard.press(key)
    tab.settle()
    assert tab.ids == list(session.ids)
    assert tab.selected == selected
    assert tab.locator(".candidates tbody tr").first.locator("td").nth(1).inner_text().strip() == str(candidates(session).token.values[0]).strip()


def test_the_cursor_moves_at_once_and_fast_moves_end_right(tab, session):
    tab.press("c")
    last = len(session.ids) - 1
    assert tab.cursor == last
    for _ in range(4):
        tab.keyboard.press("Control+k")
    assert tab.cursor == last - 4  # before any answer
    tab.settle()
    assert tab.cursor == last - 4
    expected = next_token(session.trace(), k=1, position=last - 4)
    assert tab.locator(".candidates tbody tr").first.locator("td").nth(1).inner_text().strip() == str(expected.token.values[0]).strip()
    tab.press("Control+0")
    assert tab.cursor == 0
    tab.press("Alt+w", "Alt+w", "Alt+b")
    session.move_cursor(to=0)
    for words in (1, 1, -1):
        session.move_cursor(words=words)
    assert tab.cursor == session.state.cursor
    tab.press("Control+$")
    assert tab.cursor == last
    assert tab.press("c").cursor is None


def test_clicking_works_where_keys_do(tab, session):
    tab.locator(".candidates tbody tr").nth(2).click()
    tab.settle()
    assert tab.selected == 2
    tab.locator(".candidates tbody tr").nth(2).click()
    tab.settle()
    session.append(int(candidates(session).token_id[2]))
    assert tab.ids == list(session.ids)
    tab.locator('[data-command="pop"]').click()
    tab.settle()
    assert tab.ids == list(session.ids)[:-1]
    tab.locator('[data-view="entropy"]').click()
    tab.settle()
    assert tab.view == "entropy"
    tab.locator(".token").nth(2).click()
    tab.settle()
    assert tab.cursor == 2
    tab.locator('[data-command="branch"]').click()
    tab.settle()
    tab.locator(".prompts li").first.click()
    tab.settle()
    assert tab.locator(".prompts li").first.get_attribute("class") == "current"
    tab.locator("[data-panel='timeline'] [data-position='1']").click()
    tab.settle()
    assert tab.cursor == 1


def test_every_view_by_key_and_number(tab):
    names = tab.locator(".tabs button").evaluate_all("all => all.map(each => each.dataset.view)")
    assert names[:2] == ["prompt", "probability"] and len(names) == 10
    assert tab.view == "probability"
    for name in [*names[2:], *names[:2]]:
        assert tab.press("e").view == name
        if name == "prompt":
            assert tab.locator(".token[style*=background]").count() == 0
        else:
            tab.locator(".tokens:not(.stale) .token[style*=background]").first.wait_for()
            assert tab.locator(".strip .note").is_hidden()
    assert tab.press("Shift+E").view == "prompt"
    for number, name in enumerate(names[:9], 1):
        assert tab.press(str(number)).view == name


def test_prompts_branches_undo_and_reset(tab, session):
    start = list(session.ids)
    tab.press("d", "l", "l")
    assert tab.locator(".prompts li").count() == 2
    assert len(tab.ids) == len(start) + 2
    assert len(tab.press("u").ids) == len(start) + 1
    assert len(tab.press("Shift+U").ids) == len(start) + 2
    assert tab.press("s").ids == start
    assert len(tab.press("w").ids) == len(start) + 2
    assert tab.press("Control+r").ids == start
    assert tab.press("a").locator(".prompts li").count() == 1
    tab.press("a")
    assert "only prompt" in tab.locator("footer .message").inner_text()


def test_search(tab, session):
    tab.press("/")
    tab.keyboard.type("bo")
    tab.settle()
    tokens = tab.locator(".candidates td.name").all_inner_texts()
    expected = next_token(session.trace(), k=30, search="bo")
    assert [token.strip() for token in tokens] == [str(token).strip() for token in expected.token.values]
    assert tab.ids == list(session.ids)  # typing is no command
    tab.press("Enter", "j", "l")
    assert tab.ids == [*session.ids, int(expected.token_id[1])]
    tab.press("/", "Escape")
    assert tab.locator(".candidates tbody tr").count() == 30


def test_z_scores_on_and_off(tab):
    column = tab.locator(".candidates th.z")
    assert column.is_visible()
    tab.press("z")
    assert column.is_hidden()


def test_writing_a_prompt(tab, storyworld):
    tab.press("i")
    editor = tab.get_by_role("dialog", name="Prompt")
    assert editor.get_by_role("textbox").input_value() == START
    tab.keyboard.type("Mary and John went to the")
    tab.press("Control+Enter")
    editor.wait_for(state="hidden")
    assert tab.ids == list(Session(storyworld, "Mary and John went to the").ids)
    tab.press("i")
    tab.keyboard.type("never")
    tab.press("Escape")
    assert editor.is_hidden()
    assert tab.ids == list(Session(storyworld, "Mary and John went to the").ids)


def test_refused_prompts_say_why_and_the_page_lives(tab, session):
    n_ctx = model_info(session.model).n_ctx
    tab.press("i")
    editor = tab.get_by_role("dialog", name="Prompt")
    editor.get_by_role("textbox").fill("")
    tab.press("Control+Enter")
    assert "empty" in editor.get_by_role("alert").inner_text()
    editor.get_by_role("textbox").fill("a b c " * n_ctx)
    tab.press("Control+Enter")
    assert str(n_ctx) in editor.get_by_role("alert").inner_text()
    editor.get_by_text("Keep the end").click()
    editor.wait_for(state="hidden")
    assert len(tab.settle().ids) == n_ctx
    assert tab.press("u").ids == list(session.ids)


def test_an_unknown_model_is_told_and_the_old_one_serves(tab, session):
    tab.press("m")
    chooser = tab.get_by_role("dialog", name="Model")
    chooser.get_by_role("textbox").fill("storywrold")
    tab.press("Enter")
    chooser.get_by_role("alert").get_by_text("Did you mean 'storyworld'").wait_for()
    tab.press("Escape", "l")
    assert len(tab.ids) == len(session.ids) + 1


def test_an_unknown_model_in_the_address(browser, server):
    tab = Tab(browser, server.url, query="?model=storywrold")
    tab.locator("footer .message").get_by_text("Did you mean 'storyworld'").wait_for()
    tab.keyboard.press("m")
    tab.get_by_role("dialog", name="Model").get_by_role("textbox").fill("storyworld")
    tab.keyboard.press("Enter")
    assert len(tab.ready().ids) > 3
    tab.close()
    assert tab.complaints == []


@pytest.mark.parametrize("text", ["<b id=evil>bold</b>", "$$x$$ &amp;", "🙂 日本 ‮abc", "one\ntwo\tthree  four", "x" * 200])
def test_any_text_shows_as_text(tab, storyworld, text):
    tab.press("i")
    tab.get_by_role("dialog", name="Prompt").get_by_role("textbox").fill(text)
    tab.press("Control+Enter")
    tab.get_by_role("dialog", name="Prompt").wait_for(state="hidden")
    session = Session(storyworld, text)
    assert tab.ids == list(session.ids)
    shown = tab.locator(".token").evaluate_all("all => all.map(each => each.textContent)")
    assert shown == [visible(token).replace("␠", " ") for token in session.token_texts]
    assert tab.locator("#evil").count() == 0


def test_help_is_the_table_of_commands(tab):
    tab.press("?")
    sheet = tab.get_by_role("dialog", name="Keys")
    said = sheet.inner_text()
    for command in COMMANDS:
        if command.keys:
            assert command.label in said
    tab.press("l")
    assert sheet.is_visible()  # no command behind an open sheet
    tab.press("?")
    assert sheet.is_hidden()
    tab.press("?")
    sheet.get_by_text("Next view").click()
    assert tab.settle().view == "entropy"


def test_every_button_names_its_key(tab):
    for command in COMMANDS:
        if command.place:
            assert tab.locator(f'[data-command="{command.name}"]').get_attribute("title").startswith(command.label)


def test_light_and_dark(tab):
    background = "el => getComputedStyle(el).backgroundColor"
    dark = tab.locator(".lensplorer").evaluate(background)
    tab.press("t")
    light = tab.locator(".lensplorer").evaluate(background)
    assert dark == "rgb(11, 16, 24)" and light == "rgb(247, 249, 252)"
    tab.page.reload()
    tab.ready()
    assert tab.locator(".lensplorer").evaluate(background) == light


def test_saving(tab):
    tab.press("x")
    said = tab.locator("footer .message").inner_text()
    assert said.startswith("Saved to ") and said.endswith(".json.")


def test_two_pages_do_not_see_each_other(tab, browser, server, session):
    other = Tab(browser, server.url).ready()
    other.press("l", "l", "d")
    tab.press("l")
    assert len(tab.ids) == len(session.ids) + 1
    assert len(other.ids) == len(session.ids) + 2
    other.close()


def test_a_reload_brings_everything_back(tab):
    """While the browser chooses the panels, as it does until a person arranges them."""
    tab.press("l", "l", "d", "l", "2")
    before, view, key = tab.ids, tab.view, "sessionStorage.getItem('lensplorer-tab')"
    known = tab.page.evaluate(key)
    tab.page.reload()
    tab.ready()
    assert tab.page.evaluate(key) == known
    assert tab.ids == before and tab.view == view and tab.locator("footer .message").inner_text() == ""


def test_a_duplicated_tab_goes_its_own_way(tab):
    tab.press("l", "l")
    with tab.context.expect_page() as opened:
        tab.page.evaluate("window.open(location.href)")  # as a browser's own "duplicate" does, it copies what the tab knows
    other = Tab.__new__(Tab)
    other.page = opened.value
    other.page.set_default_timeout(PATIENCE)
    key = "sessionStorage.getItem('lensplorer-tab')"
    other.ready()
    assert other.ids == tab.ids
    other.page.wait_for_function(f"{key} !== '{tab.page.evaluate(key)}'")
    other.press("l")
    tab.press("h")
    for page, ids in ((other, other.ids), (tab, tab.ids)):
        page.page.reload()
        page.ready()
        assert page.ids == ids
    assert len(other.ids) == len(tab.ids) + 2


def test_nothing_is_cut_off_on_a_small_screen(browser, server):
    tab = Tab(browser, server.url, width=1280, height=800).ready()
    for part in (".strip", ".candidates-card", ".panels", "[data-panel='timeline']", ".rail", "footer"):
        box = tab.locator(part).bounding_box()
        assert box["width"] > 200 and box["x"] >= 0 and box["x"] + box["width"] <= 1280 and box["y"] + box["height"] <= 800, part
    tab.close()


def test_space_samples_and_g_plays_until_g(tab, session):
    start = len(session.ids)
    tab.press(" ", " ")
    assert len(tab.ids) == start + 2
    tab.press("g")
    tab.locator(f".token[data-position='{start + 5}']").wait_for()
    tab.press("g")
    tab.locator("footer .running", has_text="playing").wait_for(state="detached")
    n = len(tab.ids)
    tab.press("c")
    assert len(tab.ids) == n
