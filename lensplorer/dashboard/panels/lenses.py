"""What each layer would say: the logit-lens grid, the candidates' way through the layers, and two tokens against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lensplorer.analyses.lenses import contrast, logit_lens
from lensplorer.dashboard.asking import Here, call
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, badge, heat, lines, plain
from lensplorer.dashboard.panels.target import best_other
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

WINDOW, AFTER = 24, 6  #: positions sent of the grid, and how many of them may stand after the one looked at
_SAME = "Largest |Δ log p| between the last row and the model's own prediction."


def layer_name(layer: int) -> str:
    """Row of a lens: 0 is the embedding."""
    return "embed" if layer == 0 else f"layer {layer}"


def _lens(explorer: Explorer, settings: Settings) -> Picture:
    n = len(explorer.ids)
    last = min(n, explorer.position + AFTER + 1)
    first = max(0, last - WINDOW)
    explorer.note(call(logit_lens, Here()))
    lens = explorer.need_session().along(logit_lens, first=first)
    lens = {name: values[: last - first] for name, values in lens.items()}
    ids, shares = (lens[name].swapaxes(0, 1) for name in ("top_token_id", "top_probability"))  # [layer, position, rank]
    names = {token_id: explorer.shown_token(token_id) for token_id in np.unique(ids).tolist()}
    tops = [  # the last layer on top
        [[[names[token_id], p] for token_id, p in zip(*cell)] for cell in zip(*row)] for row in zip(ids[::-1].tolist(), plain(shares[::-1]))
    ]
    colour = {"probability": shares[..., 0], "entropy": lens["entropy"].T, "KL to the last layer": lens["kl_to_final"].T}
    values = colour[settings["colour"]]
    high = 1.0 if settings["colour"] == "probability" else max(float(np.nanmax(values)), 1e-6)
    figure = heat(
        values[::-1],
        rows=[layer_name(row) for row in range(len(ids))[::-1]],
        columns=explorer.shown_tokens()[first:last],
        low=0.0,
        high=high,
        quantity="probability" if settings["colour"] == "probability" else "entropy",
        unit="probability" if settings["colour"] == "probability" else "nats",
        row="layer",
        column="position",
        first=first,
        mark=explorer.position - first,
        texts=[[cell[0][0] for cell in row] for row in tops],
        tops=tops,
        fit=74,
    )
    return {"figures": [figure], "badge": badge("Δ", float(lens["completeness"].max()), good=1e-3, near=1e-2, about=_SAME)}


LENS = Panel(
    name="lens",
    title="Logit lens: what each layer would say next",
    about="The most likely next token after each layer, at each position.",
    build=_lens,
    controls=(Control("colour", "colour", "probability", ("probability", "entropy", "KL to the last layer"), about="What the cells' colour shows"),),
    reads=(("lenses", "logit_lens"),),
    span=12,
    height=0,
)


def _layers(explorer: Explorer, settings: Settings) -> Picture:
    """The first candidates over the layers, at the position looked at."""
    shown = explorer.candidates().token_id.values[: int(settings["count"])]
    ids = [int(token_id) for token_id in dict.fromkeys([*shown.tolist(), explorer.selected_token()])]
    explorer.note(call(logit_lens, Here(), tokens=tuple(ids)))
    result = explorer.answer(call(logit_lens, explorer.here, tokens=tuple(ids))).isel(position=-1)
    names = {"probability": "probability", "logit": "logit", "correlation": "correlation"}
    values = result[names[settings["show"]]].transpose("target", "layer").values
    series = [
        {"name": explorer.shown_token(token_id), "values": values[i], "strong": token_id == explorer.selected_token()}
        for i, token_id in enumerate(ids)
    ]
    unit = {"probability": "probability", "logit": "logits", "correlation": ""}[settings["show"]]
    return {"figures": [lines([layer_name(layer) for layer in result.layer.values], series, unit=unit, x_title="layer")]}


LAYERS = Panel(
    name="layers",
    title="Candidates through the layers",
    about="How each candidate's probability, or logit, grows from layer to layer.",
    build=_layers,
    controls=(
        Control("show", "show", "probability", ("probability", "logit", "correlation")),
        Control("count", "candidates", 5, low=1, high=8),
    ),
    reads=(("lenses", "logit_lens"),),
    is_open=False,
)


def _contrast(explorer: Explorer, settings: Settings) -> Picture:
    a = settings["a"] or explorer.selected_token()
    b = settings["b"] or best_other(explorer, a)
    if b is None:
        return {"figures": [], "note": "There is no second candidate to contrast with: name one."}
    result = explorer.look(contrast, a, b)
    one, other = visible(str(result.attrs["a"])), visible(str(result.attrs["b"]))
    x = [layer_name(layer) for layer in result.layer.values]
    show = settings["show"]
    if show == "logit difference":
        series = [{"name": f"logit({one}) − logit({other})", "values": result.logit_difference.values, "strong": True}]
    else:
        series = [{"name": one, "values": result.probability_a.values, "strong": True}, {"name": other, "values": result.probability_b.values}]
    figure = lines(x, series, unit="logits" if show == "logit difference" else "probability", x_title="layer")
    about = _SAME
    return {
        "figures": [figure],
        "title": f"Contrast of {one} and {other}",
        "badge": badge("Δ", float(result.attrs["completeness"]), good=1e-3, near=1e-2, about=about),
        "note": f"After the last layer: {plain(result.logit_difference.values)[-1]:+.3g} logits.",
    }


CONTRAST = Panel(
    name="contrast",
    title="Contrast",
    about="How the model comes to prefer one token to another, layer by layer.",
    build=_contrast,
    controls=(
        Control("show", "show", "logit difference", ("logit difference", "probabilities")),
        Control("a", "token", "", about="Exactly one token, with its leading space; empty: the selected candidate"),
        Control("b", "against", "", about="Exactly one token, with its leading space; empty: the best other candidate"),
    ),
    reads=(("lenses", "contrast"),),
    is_open=False,
)
