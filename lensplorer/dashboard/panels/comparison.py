"""This run beside another: another prompt or branch, the plain model under interventions, or another model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.analyses.attention import attention_by_layer
from lensplorer.analyses.comparison import compare, difference
from lensplorer.analyses.heads import head_clusters
from lensplorer.analyses.lenses import logit_lens
from lensplorer.analyses.residual import residual_norms
from lensplorer.dashboard.asking import Call, Here, OtherModel, OtherPrompt, Plain, Source, call
from lensplorer.dashboard.panels.attention import cluster_map, layer_heat
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, columns, heat, symmetric
from lensplorer.dashboard.panels.lenses import layer_name
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_PLAIN, _MODEL = "the plain model", "another model"
_SHOWS = (
    "divergence",
    "probabilities",
    "entropy by layer",
    "residual norms",
    "attention by layer",
    "attention side by side",
    "clusters side by side",
)


def _others(explorer: Explorer) -> list[str]:
    plain = [_PLAIN] if explorer.session is not None and explorer.session.interventions else []
    return [*plain, *explorer.other_prompts(), _MODEL]


def _build(explorer: Explorer, settings: Settings) -> Picture:
    chosen = settings["with"]
    if chosen == _MODEL and not settings["model"]:
        return {"figures": [], "note": "Name a model to compare with: storyworld-mini, gpt2, a folder."}
    other: Source = (
        Plain() if chosen == _PLAIN else OtherModel(settings["model"]) if chosen == _MODEL else OtherPrompt(explorer.other_prompts()[chosen])
    )
    alignment = call(compare, Here(), other)
    aligned = explorer.ask(alignment)
    tokens = [visible(str(token)) for token in aligned.token.values]
    name = settings["model"] if chosen == _MODEL else chosen
    picture: Picture = {"title": f"This run (a) beside {name} (b)"}
    show = settings["show"]
    if show == "divergence":
        figures = [_columns(aligned.kl.values, tokens, "KL(a ‖ b)"), _columns(aligned.js.values, tokens, "JS")]
        agree = float(np.mean(aligned.top1_agree.values))
        picture["note"] = f"Both predict the same token first at {100 * agree:.3g} % of {len(tokens)} aligned positions."
    elif show == "probabilities":
        figures = [
            columns(
                aligned[f"probability_{side}"].values,
                tokens,
                low=0.0,
                high=1.0,
                bottom=0.0,
                top=1.0,
                quantity="probability",
                unit="probability",
                label=side,
                height=120,
            )
            for side in "ab"
        ]
    elif show == "attention side by side":
        figures = [layer_heat(explorer.ask(call(attention_by_layer, source)), label=side) for side, source in (("a", Here()), ("b", other))]
        picture["note"] = "From the last token of each, the mean over the heads of each block: a above, b below."
    elif show == "clusters side by side":
        figures = [cluster_map(explorer.ask(call(head_clusters, source))) for source in (Here(), other)]
        picture["note"] = "Heads that read alike at the last token: a above, b below. The two maps have axes of their own."
    else:
        figures = [_grid(explorer, show, other, alignment, tokens)]
        picture["note"] = "b − a."
    return picture | {"figures": figures}


def _columns(values: np.ndarray, tokens: list[str], label: str) -> dict[str, Any]:
    high = max(float(np.nanmax(values, initial=0.0)), 1e-9)
    return columns(values, tokens, low=0.0, high=high, bottom=0.0, top=high * 1.05, quantity="entropy", unit="nats", label=label, height=120)


def _grid(explorer: Explorer, show: str, other: Source, alignment: Call, tokens: list[str]) -> dict[str, Any]:
    function, variable, unit = {
        "entropy by layer": (logit_lens, "entropy", "nats"),
        "residual norms": (residual_norms, "norm", ""),
        "attention by layer": (attention_by_layer, "weight", ""),
    }[show]
    both = explorer.ask(call(difference, call(function, Here()), call(function, other), aligned=alignment))
    values = both[variable].values
    bound = symmetric(values)
    rows = [layer_name(i) for i in range(len(values))]
    return heat(
        values[::-1],
        rows=rows[::-1],
        columns=tokens[: values.shape[1]],
        low=-bound,
        high=bound,
        quantity="signed",
        unit=unit,
        row="layer",
        column="position",
    )


def _seconds(explorer: Explorer, settings: Settings) -> float:
    asked = settings["with"] == _MODEL and settings["model"]
    return 3.0 if asked and not explorer.has_answer(OtherModel(settings["model"])) else 0.0


COMPARISON = Panel(
    name="comparison",
    title="Comparison",
    about="Two prompts, branches or models, or the changed model and the plain one, position by position.",
    build=_build,
    controls=(
        Control("with", "with", "", _others),
        Control("model", "model", "", when=lambda settings: settings["with"] == _MODEL, about="storyworld-mini, gpt2, a folder"),
        Control("show", "show", "divergence", _SHOWS),
    ),
    is_open=False,
    seconds=_seconds,
)
