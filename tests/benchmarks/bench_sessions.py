"""Twenty pages over one model, all stepping at once: ``python -m tests.benchmarks.bench_sessions``.

A step is an append, from the command's arrival at the server to the picture with all panels, on the built-in model. The slowest step of any page
is held against the median step of a page alone, in the same process. The browser's share is not in it.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lensplorer.dashboard.page import shared_model
from lensplorer.dashboard.panels import PANELS
from tests.dashboard.test_sessions import Page

N_PAGES, N_STEPS = 20, 10
LIMIT = 20.0
PROMPT = "Once upon a time, there was a girl called Lily. " * 5


def open_page(model: object) -> Page:
    page = Page(model, PROMPT)
    page.send("show_panels", names=[name for name, panel in PANELS.items() if panel.is_open and name not in ("attribution", "features")])
    page.wait()
    return page


def steps(pages: list[Page]) -> list[float]:
    """Milliseconds of every step, all pages being sent theirs at the same time."""
    found = []
    for _ in range(N_STEPS):
        started = time.perf_counter()
        ended: list[float] = []
        for page in pages:
            page.on_settled = partial(_note, ended)
            page.send("append")
        for page in pages:
            page.wait()
        found += [1000 * (end - started) for end in ended]
    return found


def _note(times: list[float]) -> None:
    times.append(time.perf_counter())


def main() -> int:
    model = shared_model("storyworld")
    alone = open_page(model)
    steps([alone])  # warm
    lone = statistics.median(steps([alone]))
    pages = [open_page(model) for _ in range(N_PAGES)]
    together = steps(pages)
    for page in [alone, *pages]:
        page.close()
    ratio = max(together) / lone
    print(
        f"one page alone {lone:.1f} ms; {N_PAGES} at once: median {statistics.median(together):.1f}, slowest {max(together):.1f} ms = {ratio:.1f} x"
    )
    print(f"target: slowest under {LIMIT:.0f} x a lone step; {'kept' if ratio < LIMIT else 'MISSED'}")
    return int(ratio >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
