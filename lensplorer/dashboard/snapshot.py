"""What the browser draws, as plain data: one part per region of the page, each with its own error.

Text is sent as text and drawn as text. A number that does not exist (NaN) is sent as None.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from lensplorer.analyses.lenses import logit_lens
from lensplorer.dashboard.asking import call
from lensplorer.dashboard.explorer import Explorer
from lensplorer.dashboard.panels import panel_part
from lensplorer.dashboard.panels.base import plain
from lensplorer.dashboard.panels.sampling import stages
from lensplorer.errors import Cancelled, LensplorerError
from lensplorer.models import model_info
from lensplorer.sampling.params import PRESETS
from lensplorer.session import PromptState, Session

logger = logging.getLogger(__name__)

#: Scores shown when a token is pointed at: variable, label, unit.
_HOVER = (
    ("probability", "probability", "probability"),
    ("surprisal", "surprisal", "bits"),
    ("rank", "rank", "count"),
    ("entropy", "entropy", "nats"),
    ("energy", "energy", "nats"),
)
_SLOW_VIEWS = ("attribution",)  #: their colours come after the picture: they run the model again


def snapshot(explorer: Explorer) -> dict[str, Any]:
    """The parts that follow every key at once: model, strip, colours, candidates, prompts, settings, status.

    A text that takes long to run is shown without numbers first (see ``later_parts``).
    """
    parts = {"model": _model(explorer), "prompts": _prompts(explorer), "settings": _settings(explorer), "status": _status(explorer)}
    waiting = explorer.waiting()
    if waiting is not None:
        said = {"waiting": asdict(waiting)}
        return parts | {"strip": _guarded(explorer, _text) | said, "candidates": said, "colouring": {}}
    return parts | _numbers(explorer)


def _numbers(explorer: Explorer) -> dict[str, Any]:
    """The parts that need the text's run, but for the panels."""
    parts = {"strip": _guarded(explorer, _strip), "candidates": _guarded(explorer, _candidates)}
    if explorer.state.view not in _SLOW_VIEWS:
        parts["colouring"] = _guarded(explorer, _colours)
    return parts


def later_parts(explorer: Explorer) -> Iterator[dict[str, Any]]:
    """The parts that may come a moment later, one by one while no command waits: those of a long text once it has been run, slow colours, then the
    panels on screen.
    """
    try:
        waiting = explorer.waiting()
        if waiting is not None:
            if waiting.held:
                return
            failed = _guarded(explorer, _run_text)
            if failed:
                yield {"strip": failed, "candidates": {}}
                return
            yield _numbers(explorer)
        if explorer.state.view in _SLOW_VIEWS:
            with explorer.costs.running("the view", 0.0):
                colours = _guarded(explorer, _colours)
            yield {"colouring": colours}
        for name in explorer.state.shown:
            yield {f"panel.{name}": panel_part(explorer, name)}
    except Cancelled:
        return


def _guarded(explorer: Explorer, part: Callable[[Explorer], dict[str, Any]]) -> dict[str, Any]:
    """``part``, or its error: what fails in one panel is said in that panel."""
    if explorer.session is None:
        return {"empty": "no model"}
    if not explorer.session.ids:
        return {"empty": "no prompt"}
    try:
        return part(explorer)
    except Cancelled:
        raise
    except LensplorerError as error:
        return {"error": str(error)}
    except Exception as error:
        logger.exception("%s failed", part.__name__)
        return {"error": f"{type(error).__name__}: {error}"}


def _model(explorer: Explorer) -> dict[str, Any]:
    state = explorer.state
    found: dict[str, Any] = {"loading": state.loading, "error": state.model_error}
    if explorer.session is not None:
        info = model_info(explorer.session.model)
        found |= {
            "name": info.name,
            "architecture": info.architecture,
            "device": info.device,
            "dtype": info.dtype,
            "backend": info.backend,
            "processing": info.processing,
            "difference": info.difference,
            "reason": info.reason,
            "n_layers": explorer.n_layers,
            "n_ctx": info.n_ctx,
            "d_vocab": explorer.d_vocab,
            "toy": info.name.startswith("storyworld"),
        }
    saes = explorer.saes
    found["saes"] = {
        "loaded": list(saes.loaded),
        "chosen": saes.chosen,
        "loading": list(saes.loading),
        "error": saes.error,
        "found": saes.found,
        "searched": saes.searched,
    }
    return found


def _run_text(explorer: Explorer) -> dict[str, Any]:
    explorer.run_text()
    return {}


def _strip(explorer: Explorer) -> dict[str, Any]:
    """Tokens, and the scores shown on hover."""
    part = _text(explorer)
    if explorer.need_session().model_on:
        scores = explorer.scores()
        part["scores"] = [{"label": label, "unit": unit, "values": plain(scores[name].values)} for name, label, unit in _HOVER]
    return part


def _text(explorer: Explorer) -> dict[str, Any]:
    """The tokens alone."""
    session = explorer.need_session()
    special = explorer.special_ids()
    return {
        "tokens": explorer.shown_tokens(),
        "ids": list(session.ids),
        "special": [position for position, token_id in enumerate(session.ids) if token_id in special],
        "n_given": session.state.prompt.n_given,
        "key": session.state.prompt.key,
        "changed": bool(session.interventions),
        "off": not session.model_on,
        "scores": [],
    }


def _colours(explorer: Explorer) -> dict[str, Any]:
    """The current view's number for each token."""
    view = explorer.view
    part: dict[str, Any] = {
        "view": view.name,
        "label": view.label,
        "quantity": view.quantity,
        "unit": view.unit,
        "by_layer": view.by_layer,
        "layer": explorer.layer,
    }
    try:
        colouring = explorer.colouring()
    except Cancelled:
        raise
    except LensplorerError as error:  # the text stays readable when the view has no answer
        return part | {"error": str(error)}
    if colouring is not None:
        part |= {"values": plain(colouring.values), "low": colouring.low, "high": colouring.high, "title": colouring.title}
        part["badge"] = asdict(colouring.badge) if colouring.badge is not None else None
    return part


def _candidates(explorer: Explorer) -> dict[str, Any]:
    result = explorer.candidates()
    session = explorer.need_session()
    position = explorer.position
    following = session.ids[position + 1] if position + 1 < len(session.ids) else None
    ids = [int(token_id) for token_id in result.token_id.values]
    part = {
        "ids": ids,
        "tokens": [explorer.shown_token(token_id) for token_id in ids],
        "ranks": [int(rank) for rank in result["rank"].values],
        "probabilities": plain(result.probability.values),
        "logits": plain(result.logit.values),
        "z_scores": plain(result.z_score.values) if explorer.state.z_scores else None,
        "selected": max(0, min(explorer.state.selected, len(ids) - 1)),
        "following": following,
        "position": position,
        "after": explorer.shown_token(session.ids[position]),
        "search": explorer.state.search,
        "total": float(result.attrs["total_probability"]),
        "d_vocab": explorer.d_vocab,
        "layer_display": explorer.state.layer_display,
    }
    if not explorer.state.search:
        part |= _drawn_from(explorer, ids)
    if explorer.state.layer_display and ids:
        lens = explorer.answer(call(logit_lens, explorer.here, tokens=tuple(ids))).isel(position=-1)
        part["layers"] = plain(lens[explorer.state.layer_display].transpose("target", "layer").values)
    return part


def _drawn_from(explorer: Explorer, ids: list[int]) -> dict[str, Any]:
    """What the decoding settings make of the candidates; an error of theirs is told beside the controls, not here."""
    try:
        drawn = stages(explorer)
    except LensplorerError:
        return {}
    return {"p_final": plain(drawn.p_final[ids]), "kept": drawn.kept(ids).tolist(), "valid": drawn.valid(ids).tolist()}


def _prompts(explorer: Explorer) -> dict[str, Any]:
    """The list as a tree: a branch is indented under its parent and shows what it says after the fork."""
    if explorer.session is None:
        return {"rows": [], "most": explorer.options.config.prompt.max_prompts}
    session = explorer.session
    tokenizer = session.model.tokenizer
    by_key = {prompt.key: prompt for prompt in session.state.prompts}
    rows = []
    for index, prompt in enumerate(session.state.prompts):
        parent = by_key.get(prompt.parent) if prompt.parent is not None else None
        shared = _shared(prompt, parent) if parent is not None else 0
        head = 1 if prompt.ids[:1] == (tokenizer.bos_token_id,) and shared == 0 else 0
        rows.append(
            {
                "text": _decoded(tokenizer, prompt.ids[max(shared, head) :]),
                "n": len(prompt.ids),
                "depth": _depth(prompt, by_key),
                "shared": shared,
                "current": index == session.state.current,
            }
        )
    return {"rows": rows, "most": session.max_prompts}


def _shared(prompt: PromptState, parent: PromptState) -> int:
    """How many tokens a branch still shares with its parent."""
    most = min(prompt.forked_at, len(prompt.ids), len(parent.ids))
    return next((i for i in range(most) if prompt.ids[i] != parent.ids[i]), most)


def _depth(prompt: PromptState, by_key: dict[int, PromptState]) -> int:
    for depth in range(len(by_key)):
        if prompt.parent is None or prompt.parent not in by_key:
            return depth
        prompt = by_key[prompt.parent]
    return len(by_key)


def _settings(explorer: Explorer) -> dict[str, Any]:
    """The decoding controls and the interventions in force, for the rail."""
    session = explorer.session
    if session is None:
        return {}
    params, constraint = session.decoding, session.constraint
    return {
        "decoding": params.to_dict(),
        "preset": params.preset_name,
        "presets": list(PRESETS),
        "constraint": {"kind": constraint.kind, "text": constraint.text} if constraint is not None else None,
        "model_on": session.model_on,
        "interventions": [str(one) for one in session.interventions],
        "stopped": _stopped(session),
    }


def _stopped(session: Session) -> str | None:
    """Why generation cannot go on; a constraint that cannot be followed is told with the candidates."""
    try:
        return session.stop_reason if session.ids else None
    except LensplorerError:
        return None


def _status(explorer: Explorer) -> dict[str, Any]:
    state, session = explorer.state, explorer.session
    part: dict[str, Any] = {
        "acknowledged": state.acknowledged,
        "message": state.message,
        "editor": state.editor,
        "views": [{"name": view.name, "label": view.label, "short": view.short} for view in explorer.views.values()],
        "view": state.view,
        "cursor": None,
        "n": 0,
        "theme": state.theme,
        "playing": state.playing,
        "download": state.download,
        "saved": state.saved,
        "feature": state.feature,
        "aim": state.aim,
        "open": state.open,
    }
    if session is not None:
        part |= {"cursor": session.state.cursor, "n": len(session.ids), "text": session.text, "n_ctx": model_info(session.model).n_ctx}
    return part


@lru_cache(maxsize=64)
def _decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    text = str(tokenizer.decode(list(ids)))
    return text if len(text) <= 400 else text[:200] + " … " + text[-190:]
