"""How a result becomes a picture: the registry of views, and what they share.

A view is a function of a result (an ``xarray.Dataset``) alone. It imports no model code. Positions are integers on an axis labelled with
token text by a formatter, since tokens repeat and a categorical axis would merge them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.tokens import visible

if TYPE_CHECKING:
    import xarray as xr

#: analysis name → the function that draws its result
VIEWS: dict[str, Callable[..., Any]] = {}

#: Modules of this package that register views; imported by the first ``draw``.
_MODULES = ("scores", "lenses", "residual", "attention", "attribution", "features", "sampling", "comparison", "patching")


def view(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of a result as the view of the analyses called ``names``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            VIEWS[name] = function
        return function

    return register


@expects
def draw(result: xr.Dataset, *, theme: str = "dark", **options: Any) -> Any:
    """The HoloViews element that shows an analysis' result.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> norms = lp.residual_norms(lp.run_trace(model, "Once upon a time", reads=[lp.residual_norms]))
    >>> type(lp.draw(norms)).__module__.split(".")[0]
    'holoviews'

    Args:
        result: what an analysis returned.
        theme: ``"dark"`` or ``"light"``.
        options: passed on to the view of that analysis.

    Raises:
        AnalysisError: the dataset is no analysis' result, or that analysis has no view.
    """
    _load_views()
    name = result.attrs.get("analysis", "")
    if name not in VIEWS:
        raise AnalysisError(f"There is no view for {name!r}: expected a result of an analysis.{did_you_mean(name, VIEWS)}")
    return VIEWS[name](result, theme=theme, **options)


def _load_views() -> None:
    import holoviews as hv

    if "bokeh" not in hv.Store.renderers:
        hv.extension("bokeh")
    for module in _MODULES:
        try:
            import_module(f"lensplorer.views.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"lensplorer.views.{module}":
                raise


def token_formatter(texts: Sequence[str], *, longest: int = 14) -> Any:
    """A Bokeh tick formatter that shows token text at integer positions."""
    from bokeh.models import CustomJSTickFormatter

    labels = [shorten(visible(text), longest) for text in texts]
    return CustomJSTickFormatter(args={"labels": labels}, code="return Number.isInteger(tick) && labels[tick] !== undefined ? labels[tick] : ''")


def shorten(text: str, longest: int) -> str:
    """``text`` cut to ``longest`` characters, an ellipsis counted in."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
