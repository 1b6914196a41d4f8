"""Activation patching: what of another prompt's run, put into this one, brings its answer back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lensplorer.analyses.patching import activation_patching, attribution_patching, confirm_patching
from lensplorer.dashboard.asking import Here, OtherPrompt, call
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, bars, heat, symmetric

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_HOOKS = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "pattern")
_MEASURED, _ESTIMATED, _CONFIRMED = "patch each cell", "first-order estimate", "estimate, the top confirmed"
_TOP = 10


def _build(explorer: Explorer, settings: Settings) -> Picture:
    others = explorer.other_prompts()
    if not others:
        note = "Patching needs a second prompt of as many tokens: press d to branch, and change it (i)."
        return {"figures": [], "note": note}
    clean = OtherPrompt(others[settings["clean"]])
    metric = (settings["right"] or explorer.best_token(clean), settings["wrong"] or explorer.best_token(Here()))
    measured = settings["how"] == _MEASURED
    question = call(activation_patching if measured else attribution_patching, clean, Here(), settings["hook"], metric)
    result = explorer.ask(question)
    effect = result.effect if measured else result.estimate
    values = effect.values
    bound = max(1.0, symmetric(values))
    by_head = "head" in effect.dims
    rows = [f"block {layer}" for layer in range(len(values))]
    figure = heat(
        values[::-1],
        rows=rows[::-1],
        columns=[f"head {head}" for head in range(values.shape[1])] if by_head else explorer.shown_tokens(),
        low=-bound,
        high=bound,
        quantity="signed",
        unit="of the clean answer",
        row="block",
        column="head" if by_head else "position",
    )
    best = np.unravel_index(int(np.nanargmax(values)), values.shape)
    right, wrong = (token if isinstance(token, str) else explorer.shown_token(token) for token in metric)
    place = f"block {best[0]}, {'head' if by_head else 'position'} {best[1]}"
    figures, note = [figure], f"1 = the clean answer restored. Most at {place}: {float(values[best]):.3g}."
    if settings["how"] == _CONFIRMED:
        confirmed = explorer.ask(call(confirm_patching, question, clean, Here(), metric, top=_TOP))
        series = {"estimate": confirmed.predicted.values, "measured": confirmed.measured.values}
        figures.append(bars([str(name) for name in confirmed.component.values], series, unit="of the clean answer"))
        note += f" Over the {len(confirmed.component)} largest, estimate and measurement correlate at {float(confirmed.attrs['correlation']):.2f}."
    elif not measured:
        note += " An estimate, not a measurement."
    return {"figures": figures, "title": f"Patching {settings['hook']} from the other prompt: logit({right}) − logit({wrong})", "note": note}


def _seconds(explorer: Explorer, settings: Settings) -> float:
    by_head = settings["hook"] in ("z", "pattern")
    cells = explorer.n_layers * (int(explorer.need_session().model.cfg.n_heads) if by_head else len(explorer.ids))
    runs = {_MEASURED: cells, _ESTIMATED: 4, _CONFIRMED: 4 + _TOP}[settings["how"]]
    return runs * explorer.forward_seconds if explorer.other_prompts() else 0.0


PATCHING = Panel(
    name="patching",
    title="Activation patching",
    about="Which activations of another prompt bring its answer into this one.",
    build=_build,
    controls=(
        Control("clean", "from", "", lambda explorer: list(explorer.other_prompts()) or ["–"], about="The clean prompt; this one is the corrupt"),
        Control("hook", "of", "resid_pre", _HOOKS),
        Control("right", "right", "", about="Right answer, one token with its leading space; empty: the clean prompt's best candidate"),
        Control("wrong", "wrong", "", about="Wrong answer; empty: this prompt's best candidate"),
        Control("how", "how", _MEASURED, (_MEASURED, _ESTIMATED, _CONFIRMED)),
    ),
    is_open=False,
    seconds=_seconds,
)
