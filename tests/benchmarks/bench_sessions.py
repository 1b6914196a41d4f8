"""Twenty pages over one model, all stepping at once: ``python -m tests.benchmarks.bench_sessions``.

A step is an append of new text on the built-in model, from the key to the frame in which every panel on screen shows it: what a person sees. One page
is a real tab; the nineteen others are pages of the same server whose browsers would be on other machines, so only their computing is here, and what
the tab's own browser takes when it is alone is added to it. All are told to step at once; the slowest of a round, median over the rounds, is held
against the median of the steps that the tab makes alone, between the rounds. Beside it, the computing only.

Without ``--shape`` the model is the built-in one, since the pages are measured: a larger model hides what they cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).parents[2]))

import panel as pn
from playwright.sync_api import sync_playwright

from lensplorer.dashboard.options import Options
from lensplorer.dashboard.page import Desk, shared_model
from tests.benchmarks import shapes
from tests.benchmarks.bench_dashboard import WATCH, measure
from tests.dashboard.test_sessions import Page
from tests.ui.conftest import FLAGS, Tab, find_browser

N_PAGES, N_ROUNDS, N_ALONE = 20, 10, 4
LIMIT = 20.0
PROMPT = "Once upon a time, there was a girl called Lily. " * 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser, default=None)
    options = parser.parse_args()
    path = find_browser()
    if path is None:
        print("no Chromium here: nothing measured")
        return 0
    if not options.shape:
        return serve(path, "storyworld")
    with tempfile.TemporaryDirectory() as folder:
        shapes.save(shapes.plain_model(options.shape), Path(folder))
        return serve(path, folder)


def serve(path: str, model: str) -> int:
    """The page of ``model`` on a server in this process, and a browser that drives it."""
    desks: list[Desk] = []

    def serve_page() -> object:
        desks.append(Desk(Options(model=model)))
        return desks[-1].page

    server = pn.serve({"explorer": serve_page}, address="127.0.0.1", show=False, start=False, verbose=False)
    found: list[int] = []

    def drive() -> None:
        try:
            found.append(compare(path, f"http://127.0.0.1:{server.port}/explorer", model, desks))
        finally:
            server.io_loop.add_callback(server.io_loop.stop)

    threading.Thread(target=drive).start()
    server.io_loop.start()
    return found[0] if found else 1


def compare(path: str, url: str, model: str, desks: list[Desk]) -> int:
    """The tab alone and with the others, by turns."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        tab = Tab(browser, url, query="?" + urlencode({"prompt": PROMPT})).ready()
        tab.page.evaluate(WATCH)
        shown = desks[-1].explorer.state.shown
        others = [_open(shared_model(model), shown) for _ in range(N_PAGES - 1)]
        for desk in [desks[-1], *(page.desk for page in others)]:
            while desk.explorer.saes.loading or (model == "storyworld" and not desk.explorer.saes.loaded):
                time.sleep(0.05)
        together(tab, others)
        measure(tab, ["l"] * N_ALONE)
        alone: dict[str, list[float]] = {"panels": [], "all": []}
        steps: list[tuple[float, float]] = []
        for _ in range(N_ROUNDS):
            for kind, times in measure(tab, ["l"] * N_ALONE).items():
                alone.get(kind, []).extend(times)
            steps.append(together(tab, others))
        for page in others:
            page.close()
        browser.close()
    seen, computed = statistics.median(alone["panels"]), statistics.median(alone["all"])
    browser_share = seen - computed
    slowest = [max(tab_took, last + browser_share) for tab_took, last in steps]
    middle, worst = statistics.median(slowest), max(slowest)
    last = statistics.median(last for _, last in steps)
    print(f"panels on screen: {', '.join(shown)}")
    print(f"alone: {seen:.1f} ms, of which computing {computed:.1f}; slowest of {N_PAGES}: {middle:.0f} ms, at worst {worst:.0f}")
    print(f"computing only: the last of the others after {last:.0f} ms = {last / computed:.1f} x")
    print(f"target: slowest under {LIMIT:.0f} x a lone step: {middle / seen:.1f} x, {'kept' if middle < LIMIT * seen else 'MISSED'}")
    return int(middle >= LIMIT * seen)


def _open(model: object, shown: list[str]) -> Page:
    page = Page(model, PROMPT)
    page.send("show_panels", names=shown)
    page.wait()
    return page


def together(tab: Tab, others: list[Page]) -> tuple[float, float]:
    """All step at once: milliseconds from the tab's key to its last frame, and from the first command to the last of the others' pictures."""
    tab.page.evaluate("for (const kind in window.times) window.times[kind] = []")
    ended: list[float] = []
    started = time.perf_counter()
    for page in others:
        page.on_settled = partial(_note, ended)
        page.send("append")
    tab.page.keyboard.press("l")
    tab.page.wait_for_function("window.times.panels.length >= 1")
    for page in others:
        page.wait()
    return tab.page.evaluate("window.times.panels[0]"), 1000 * (max(ended) - started)


def _note(times: list[float]) -> None:
    times.append(time.perf_counter())


if __name__ == "__main__":
    sys.exit(main())
