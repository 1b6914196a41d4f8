"""What a panel is: a question about the current prompt, its controls, and the picture of the answer as plain data.

A panel is built on the explorer's thread, when it is on screen and nothing else waits. It asks the analyses through the explorer, which
remembers the answers and the calls: from those come "copy as Python" and the exported data, so that they are what is on screen.

A picture is ``{"figures": [...], "title", "badge", "note"}``. A figure is one of the kinds that ``js/figures.js`` draws: ``columns`` (a number per
token), ``bars``, ``heat``, ``lines``, ``scatter``, ``table``. Text in it is text, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.dashboard.colouring import Badge, brief
from lensplorer.errors import LensplorerError, check_unicode, did_you_mean

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

Picture = dict[str, Any]
Settings = Mapping[str, Any]
Choices = Sequence[str] | Callable[["Explorer"], Sequence[str]]

#: A run that takes longer is announced with its cost and waits for a word.
ASK_ABOVE = 1.0  # seconds


@dataclass(frozen=True)
class Control:
    """One setting of a panel.

    Attributes:
        name, label: in ``settings``, and on the page.
        default: its first value, whose type it keeps: str, int, float or bool.
        choices: what it may be; empty for any text or number. A function when it depends on the model.
        low, high: bounds of a number.
        when: (settings) → whether it applies; it is hidden where not.
        about: tooltip.
    """

    name: str
    label: str
    default: Any
    choices: Choices = ()
    low: float = -math.inf
    high: float = math.inf
    when: Callable[[Settings], bool] = lambda settings: True
    about: str = ""

    def options(self, explorer: Explorer) -> list[str]:
        return list(self.choices(explorer) if callable(self.choices) else self.choices)

    def read(self, explorer: Explorer, value: Any) -> Any:
        """``value`` as this control's type.

        Raises:
            LensplorerError: it is none of the choices, no number, or out of bounds.
        """
        found = self.typed(value)
        options = self.options(explorer)
        if options and isinstance(found, str) and found not in options:
            raise LensplorerError(f"{self.label}: there is no {found!r}.{did_you_mean(found, options)}")
        return found

    def typed(self, value: Any) -> Any:
        """As ``read``, without a look at the choices: a saved one may be of another prompt or SAE (see ``Panel.settings``).

        Raises:
            LensplorerError: it is no number, or out of bounds.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise LensplorerError(f"{self.label}: expected true or false, got {value!r}.")
            return value
        if isinstance(self.default, (int, float)):
            try:
                number = type(self.default)(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise LensplorerError(f"{self.label}: expected a number, got {value!r}.") from error
            if not (self.low <= number <= self.high and abs(number) < math.inf):
                raise LensplorerError(f"{self.label}: expected {self.low:g} to {self.high:g}, got {number:g}.")
            return number
        text = str(value)[:2_000]
        check_unicode(text, self.label, LensplorerError)
        return text


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        name, title: in messages, and on the page.
        about: one line: what it shows.
        build: (explorer, settings) → picture.
        controls: its settings.
        reads: (module of ``lensplorer.analyses``, name) of the analyses whose activations it needs in each trace.
        span: columns of twelve that it takes.
        height: of its body, px.
        is_open: whether it is open on a new page.
        seconds: (explorer, settings) → about how long ``build`` takes; None when it is always quick.
    """

    name: str
    title: str
    about: str
    build: Callable[[Explorer, Settings], Picture]
    controls: tuple[Control, ...] = ()
    reads: tuple[tuple[str, str], ...] = ()
    span: int = 6
    height: int = 260
    is_open: bool = True
    seconds: Callable[[Explorer, Settings], float] | None = None

    def control(self, name: str) -> Control:
        """The control called ``name``.

        Raises:
            LensplorerError: there is none.
        """
        found = next((control for control in self.controls if control.name == name), None)
        if found is None:
            raise LensplorerError(f"The panel {self.title!r} has no {name!r}.{did_you_mean(name, [control.name for control in self.controls])}")
        return found

    def settings(self, explorer: Explorer) -> dict[str, Any]:
        """The values of its controls; a choice that the model no longer offers falls back to the default, or to the first."""
        chosen = explorer.settings.get(self.name, {})
        values: dict[str, Any] = {}
        for control in self.controls:
            value = chosen.get(control.name, control.default)
            options = control.options(explorer)
            if options and value not in options:
                value = control.default if control.default in options else options[0]
            values[control.name] = value
        return values


# -- pieces of pictures ------------------------------------------------------------------------------------------------------------


def badge(text: str, value: float, *, good: float, near: float, about: str) -> dict[str, str]:
    """A trust badge: the figure of an identity, and whether it is within the method's tolerance."""
    level = "good" if value <= good else "near" if value <= near else "bad"
    return asdict(Badge(f"{text} {brief(value)}", level, about))


def completeness_badge(result: Any, about: str, *, good: float = 1e-3, near: float = 1e-2, text: str = "Σ") -> dict[str, str] | None:
    """The badge of a result's completeness; None where it names none."""
    value = float(result.attrs.get("completeness", np.nan))
    return None if np.isnan(value) else badge(text, value, good=good, near=near, about=about)


def plain(values: Any) -> Any:
    """Numbers for the browser, nested as the array is: five significant digits are more than it shows, and what is not finite is None."""
    array = np.asarray(values, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 4 - np.floor(np.log10(np.abs(array)))
        digits = np.clip(np.where(np.isfinite(digits), digits, 0), -300, 300)
        up, down = 10.0 ** np.maximum(digits, 0), 10.0 ** np.maximum(-digits, 0)  # powers of ten are exact, their inverses are not
        rounded = np.round(array * up / down) * down / up
    finite = np.isfinite(rounded)
    if not finite.all():
        rounded = rounded.astype(object)
        rounded[~finite] = None
    return rounded.tolist()


def symmetric(values: Any) -> float:
    """The largest absolute value, 1 where there is none: the ends of a signed scale."""
    array = np.abs(np.asarray(values, dtype=float))
    finite = array[np.isfinite(array)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def bars(
    labels: Sequence[str], series: Mapping[str, Any], *, unit: str, quantity: str = "signed", tips: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Horizontal bars from zero, one row per label, one bar per series."""
    values = {name: plain(numbers) for name, numbers in series.items()}
    bound = symmetric([value if value is not None else 0.0 for numbers in values.values() for value in numbers])
    return {
        "kind": "bars",
        "labels": list(labels),
        "series": [{"name": name, "values": numbers} for name, numbers in values.items()],
        "low": -bound,
        "high": bound,
        "quantity": quantity,
        "unit": unit,
        "tips": list(tips),
    } | more


def columns(values: Any, tokens: Sequence[str], *, low: float, high: float, quantity: str, unit: str, **more: Any) -> dict[str, Any]:
    """A number per token as vertical bars over the token axis; ``first`` is the position of the first."""
    return {
        "kind": "columns",
        "values": plain(values),
        "tokens": list(tokens),
        "first": 0,
        "low": low,
        "high": high,
        "quantity": quantity,
        "unit": unit,
    } | more


def heat(
    values: Any, *, rows: Sequence[str], columns: Sequence[str], low: float, high: float, quantity: str, unit: str, row: str, column: str, **more: Any
) -> dict[str, Any]:
    """A grid of colours. ``row`` and ``column`` say what the axes are ("layer", "position"); positions may be clicked.

    ``more``: ``texts`` [row][column], text in the cells; ``tips``, likewise, lines shown on hover; ``tops``, likewise, a list of (token, probability)
    shown on hover; ``mark``, the column of the position looked at; ``first``, the position of the first column.
    """
    return {
        "kind": "heat",
        "values": plain(values),
        "rows": list(rows),
        "columns": list(columns),
        "low": low,
        "high": high,
        "quantity": quantity,
        "unit": unit,
        "row": row,
        "column": column,
    } | more


def lines(x: Sequence[str], series: Sequence[Mapping[str, Any]], *, unit: str, x_title: str, **more: Any) -> dict[str, Any]:
    """A line per series ({name, values}) over the labels of ``x``."""
    return {
        "kind": "lines",
        "x": list(x),
        "series": [{**each, "values": plain(each["values"])} for each in series],
        "unit": unit,
        "x_title": x_title,
    } | more


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]], **more: Any) -> dict[str, Any]:
    """Rows under headings (label, type): ``token``, ``text``, ``number``, ``probability``, ``signed``, ``link``, or ``do`` for a list of buttons.

    A ``do`` cell is a list of {label, do, …}: commands that its buttons send.
    """
    return {
        "kind": "table",
        "columns": [{"label": label, "type": kind} for label, kind in columns],
        "rows": [[_cell(value) for value in row] for row in rows],
    } | more
