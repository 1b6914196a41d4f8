"""From the model's distribution to the one drawn from: every stage of the sampling pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.dashboard.asking import Here, call
from lensplorer.dashboard.panels.base import Panel, Picture, Settings, completeness_badge, heat, table
from lensplorer.sampling.distribution import distribution_of, sampling_distribution, stages_of

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer
    from lensplorer.sampling.pipeline import Stages

_SHOWN = 12


def distribution(explorer: Explorer) -> Any:
    """The pipeline's distribution after the position looked at, under the settings of now."""
    options = _options(explorer) | {"k": explorer.options.config.display.tokens_to_show}
    question = call(sampling_distribution, Here(), position=explorer.position, **options)
    explorer.note(question)
    window = explorer.answer(explorer.here)
    return explorer.answer(question, lambda: distribution_of(window, window.logits[-1], _history(explorer), chosen=None, **options))


def stages(explorer: Explorer) -> Stages:
    """The stages alone, over the whole vocabulary: what the candidates show of them."""
    options, window = _options(explorer), explorer.answer(explorer.here)
    question = call(stages_of, explorer.here, **options)
    return explorer.answer(question, lambda: stages_of(window.model.tokenizer, window.logits[-1], _history(explorer), **options))


def _history(explorer: Explorer) -> tuple[int, ...]:
    return explorer.need_session().ids[: explorer.position + 1]


def _options(explorer: Explorer) -> dict[str, Any]:
    session = explorer.need_session()
    return {
        "params": session.decoding,
        "n_prompt": min(session.state.prompt.n_given, explorer.position + 1),
        "constraint": session.constraint if explorer.at_end else None,
    }


def _build(explorer: Explorer, settings: Settings) -> Picture:
    result = distribution(explorer)
    order = np.lexsort((-result.p_base.values, -result.p_final.values))[:_SHOWN]
    active = [i for i, on in enumerate(result.active.values) if on and result.stage.values[i] != "base"]  # that one is p_base
    names = ["p_base", *(str(result.stage.values[i]).replace("_", " ") for i in active)]
    p = result.p.values[active][:, order]  # [stage, candidate]
    base = result.p_base.values[order]
    figure = heat(
        [[float(base[c]), *(float(value) for value in p[:, c])] for c in range(len(order))],
        rows=[explorer.shown_token(int(result.token_id.values[c])) for c in order],
        columns=names,
        low=0.0,
        high=1.0,
        quantity="probability",
        unit="probability",
        row="candidate",
        column="stage",
        show_values=True,
        fit=64,
    )
    rows = [
        [names[1 + i], int(result.n_kept.values[at]), float(result.mass_removed.values[at]), float(result.kl.values[at])]
        for i, at in enumerate(active)
    ]
    taken = table([("stage", "text"), ("tokens left", "number"), ("mass removed", "probability"), ("KL to the stage before, nats", "number")], rows)
    return {
        "figures": [figure, taken],
        "badge": completeness_badge(result, "Mass kept and mass removed add up to 1: by how much they miss.", good=1e-5, near=1e-3),
        "note": "" if active else "Nothing changes the model's own distribution.",
    }


SAMPLING = Panel(
    name="sampling",
    title="Sampling: from p_base to p_final",
    about="What penalties, temperature, constraint and cuts make of the model's distribution, stage by stage.",
    build=_build,
    height=360,
    is_open=False,
)
