"""Figures as files: a page that needs nothing else, and SVG or PNG drawn by the browser that is installed.

A figure is drawn by Bokeh in a browser; without one there is only the page. The browser is driven by Playwright (``pip install playwright``) and
is a Chromium found on the PATH, named by ``LENSPLORER_BROWSER``, or Playwright's own (``playwright install chromium``).
"""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lensplorer.arguments import expects
from lensplorer.errors import FormatError, did_you_mean, first_line
from lensplorer.formats.attributions import Attributions
from lensplorer.formats.files import write_bytes

if TYPE_CHECKING:
    import xarray as xr

#: What ``draw`` gives: an element of HoloViews, or a layout of Panel.
Element: TypeAlias = Any

FIGURES = (".html", ".svg", ".png")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PANELS_SCRIPT = re.compile(r'<script[^>]* src="static/extensions/panel/[^"]*"></script>\n?')
_PATIENCE = 60_000  # ms
#: Bokeh's own export of the figure on the page.
_EXPORT_SVG = 'Bokeh.index.roots[0].export("svg").ctx.get_serialized_svg(true)'


@expects
def visualize(result: xr.Dataset | Attributions, *, theme: str = "light", **options: Any) -> Any:
    """The figure of a result, for the last line of a notebook's cell.

    >>> import lensplorer as lp
    >>> type(lp.visualize(lp.token_scores(lp.run_trace(lp.load_model("storyworld"), "Once upon a time")))).__name__
    'Rectangles'

    Args:
        result: what an analysis returned, or attributions read from a file.
        theme: ``"light"``, as notebooks are, or ``"dark"``.
        options: passed on to the view of that analysis.

    Raises:
        AnalysisError: that analysis has no view.
    """
    from lensplorer.views import draw

    return draw(result.to_dataset() if isinstance(result, Attributions) else result, theme=theme, **options)


@expects
def export_figure(figure: xr.Dataset | Attributions | Element, path: str | Path, *, theme: str = "light", title: str | None = None) -> Path:
    """Write a figure in the format that the suffix names.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> norms = lp.residual_norms(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.export_figure(norms, folder + "/norms.html").name
    'norms.html'

    Args:
        figure: a result, or an element from ``draw``.
        path: ``.html`` is a page with all it needs inside; ``.svg`` and ``.png`` need a browser.
        theme: of a result that is drawn here.
        title: of the page. None: the analysis and model, or the file's name.

    Returns:
        the path.

    Raises:
        FormatError: another suffix; the file cannot be written; Playwright or a browser is missing, which the message names.
        AnalysisError: the result has no view.
    """
    path = Path(path)
    if path.suffix not in FIGURES:
        raise FormatError(f"{path.name!r} names no figure format.{did_you_mean(path.suffix or path.name, FIGURES)}")
    attrs = getattr(figure, "attrs", {})
    title = title or (f"{attrs['analysis']} of {attrs.get('model', '')}" if "analysis" in attrs else path.stem)
    is_result = hasattr(figure, "data_vars") or isinstance(figure, Attributions)
    page = figure_page(visualize(figure, theme=theme) if is_result else figure, title=title)
    write_bytes(path, page.encode("utf-8") if path.suffix == ".html" else _drawn(page, path.suffix))
    return path


def figure_page(element: Any, *, title: str = "lensplorer") -> str:
    """A whole HTML page with the element in it, Bokeh's code included: it opens anywhere, without a network."""
    import holoviews as hv
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    if "bokeh" not in hv.Store.renderers:
        hv.extension("bokeh")
    page = str(file_html(hv.render(element, backend="bokeh"), INLINE, title))
    # Panel, which HoloViews imports, adds a script for its own widgets to every page, by an address that only its server has.
    return _PANELS_SCRIPT.sub("", page, count=1)


def _drawn(page: str, suffix: str) -> bytes:
    """The picture that a browser makes of a page; in a thread, since a notebook's own event loop forbids Playwright here."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_drive, page, suffix).result()


def _drive(page: str, suffix: str) -> bytes:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError as error:
        raise FormatError(f"A {suffix} figure is drawn by a browser: pip install playwright. A .html figure needs nothing.") from error
    named = os.environ.get("LENSPLORER_BROWSER")
    browser_path = named or next((found for found in map(shutil.which, _BROWSERS) if found), None)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
            try:
                view = browser.new_page(device_scale_factor=2)
                view.set_default_timeout(_PATIENCE)
                view.set_content(page)
                view.wait_for_function("window.Bokeh && Bokeh.index.roots.length > 0 && Bokeh.index.roots[0].has_finished()")
                if suffix == ".svg":
                    return str(view.evaluate(_EXPORT_SVG)).encode("utf-8")
                return bytes(view.locator(".bk-Figure, .bk-GridPlot, .bk-Column, .bk-Row").first.screenshot())
            finally:
                browser.close()
    except Error as error:
        raise FormatError(
            f"A {suffix} figure is drawn by a browser, and none worked ({first_line(error)}). Install Chromium, name one in LENSPLORER_BROWSER,"
            " or run `playwright install chromium`. A .html figure needs nothing."
        ) from error
