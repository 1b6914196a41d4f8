"""Pictures of the page: ``python -m tests.ui.screenshots OUT_DIR [--all]``.

Writes explorer.png, the picture of the README; with ``--all`` also each view and panel in both themes, four sizes, and the empty, loading and
failing states.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

from lensplorer.dashboard.panels import PANELS
from tests.ui.conftest import FLAGS, Server, Tab, find_browser

SIZES = ((1440, 900), (1280, 800), (2560, 1440), (3840, 2160))
STORY = "When Mary and John went to the shop, John gave the book to"


def write_prompt(tab: Tab, text: str) -> None:
    tab.press("i")
    tab.get_by_role("dialog", name="Prompt").get_by_role("textbox").fill(text)
    tab.press("Control+Enter")
    tab.get_by_role("dialog", name="Prompt").wait_for(state="hidden")


def show_story(tab: Tab) -> None:
    """A prompt, a step of completion, a branch with another choice, and back to where the model hesitates."""
    write_prompt(tab, STORY)
    tab.press("l", "d", "j", "l", "l", "l", "l", "w")


def shoot(tab: Tab, path: Path) -> None:
    tab.settle()
    tab.page.mouse.move(0, 0)
    tab.page.wait_for_timeout(600)  # what fades has faded
    tab.page.screenshot(path=path)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--url", help="a server that is already running")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    browser_path = find_browser()
    if browser_path is None:
        raise SystemExit("No Chromium was found.")
    server = None if arguments.url else Server()
    url = arguments.url or server.url  # type: ignore[union-attr]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            tab = Tab(browser, url).ready()
            show_story(tab)
            shoot(tab, arguments.out / "explorer.png")
            if arguments.all:
                every_state(tab, browser, url, arguments.out)
            browser.close()
    finally:
        if server is not None:
            server.stop()


def every_state(tab: Tab, browser: object, url: str, out: Path) -> None:
    names = tab.locator(".tabs button").evaluate_all("all => all.map(each => each.dataset.view)")
    tab.press("Control+k", "Control+k")
    for theme in ("dark", "light"):
        for number, name in enumerate(names, 1):
            tab.locator(f"[data-view={name}]").click()
            shoot(tab, out / f"{number}-{name}-{theme}.png")
        tab.press("2")
        for width, height in SIZES:
            tab.page.set_viewport_size({"width": width, "height": height})
            shoot(tab, out / f"size-{width}-{theme}.png")
        tab.page.set_viewport_size({"width": 1440, "height": 900})
        for name in PANELS:
            panel = tab.panel(name)
            panel.locator("h2").hover()
            tab.press("Shift+M")
            if panel.get_attribute("data-state") == "waiting":
                tab.press("r")
            shoot(tab, out / f"panel-{name}-{theme}.png")
            panel.locator("h2").hover()
            tab.press("Shift+M")
        tab.press("?")
        shoot(tab, out / f"help-{theme}.png")
        tab.press("Escape", "i")
        tab.get_by_role("dialog", name="Prompt").get_by_role("textbox").fill("a b c " * 300)
        tab.press("Control+Enter")
        shoot(tab, out / f"refused-{theme}.png")
        tab.press("Escape", "m")
        shoot(tab, out / f"model-{theme}.png")
        tab.press("Escape")
        tab.locator(".token").nth(4).hover()
        tab.page.screenshot(path=out / f"hover-{theme}.png")
        tab.press("t")
    failed = Tab(browser, url, query="?model=storywrold")
    failed.locator(".strip .note").get_by_text("Did you mean").wait_for()
    shoot(failed, out / "no-model.png")


if __name__ == "__main__":
    main()
