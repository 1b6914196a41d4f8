"""What the browser draws, as plain data: one part per region of the page, each with its own error.

Text is sent as text and drawn as text. A number that does not exist (NaN) is sent as None.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from lensplorer.analyses.lenses import logit_lens
from lensplorer.analyses.scores import token_scores
from lensplorer.dashboard.colouring import Badge, Colouring, TokenView, brief
from lensplorer.dashboard.explorer import Explorer
from lensplorer.errors import LensplorerError
from lensplorer.models import model_info
from lensplorer.session import PromptState
from lensplorer.tokens import token_text, visible

logger = logging.getLogger(__name__)

#: Scores shown when a token is pointed at: variable, label, unit.
_HOVER = (
    ("probability", "probability", "probability"),
    ("surprisal", "surprisal", "bits"),
    ("rank", "rank", "count"),
    ("entropy", "entropy", "nats"),
    ("energy", "energy", "nats"),
)
_LENS_COLUMNS, _LENS_AFTER = 24, 6  # positions sent, and how many of them may stand after the one looked at
_LONGEST_TOKEN = 200  # characters; a token of a whole line of dashes need not be sent in full


def snapshot(explorer: Explorer) -> dict[str, Any]:
    """The parts that follow every key at once: model, strip, candidates, prompts, status."""
    return {
        "model": _model(explorer),
        "strip": _guarded(explorer, _strip),
        "candidates": _guarded(explorer, _candidates),
        "prompts": _prompts(explorer),
        "status": _status(explorer),
    }


def later_parts(explorer: Explorer) -> dict[str, Any]:
    """The parts that may come a moment later, when no key is waiting: the logit lens."""
    return {"lens": _guarded(explorer, _lens)}


def _guarded(explorer: Explorer, part: Callable[[Explorer], dict[str, Any]]) -> dict[str, Any]:
    """``part``, or its error: what fails in one panel is said in that panel."""
    if explorer.session is None:
        return {"empty": "no model"}
    if not explorer.session.ids:
        return {"empty": "no prompt"}
    try:
        return part(explorer)
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
        }
    return found


def _strip(explorer: Explorer) -> dict[str, Any]:
    """Tokens, the current view's number for each, and the scores shown on hover."""
    session = explorer.need_session()
    tokenizer = session.model.tokenizer
    special = _special_ids(tokenizer)
    view = explorer.views[explorer.state.view]
    part: dict[str, Any] = {
        "tokens": [_visible_token(tokenizer, token_id) for token_id in session.ids],
        "ids": list(session.ids),
        "special": [position for position, token_id in enumerate(session.ids) if token_id in special],
        "n_given": session.state.prompt.n_given,
        "key": session.state.prompt.key,
        "view": view.name,
        "label": view.label,
        "quantity": view.quantity,
        "unit": view.unit,
        "by_layer": view.by_layer,
        "layer": explorer.layer,
    }
    scores = explorer(token_scores)
    part["scores"] = [{"label": label, "unit": unit, "values": numbers(scores[name].values)} for name, label, unit in _HOVER]
    try:
        colouring = _colour(explorer, view)
    except LensplorerError as error:  # the text stays readable when the view has no answer
        part["error"] = str(error)
        colouring = None
    if colouring is not None:
        part |= {"values": numbers(colouring.values), "low": colouring.low, "high": colouring.high, "title": colouring.title}
        part["badge"] = asdict(colouring.badge) if colouring.badge is not None else None
    return part


def _colour(explorer: Explorer, view: TokenView) -> Colouring | None:
    return view.colour(explorer, *(view.analyses() or ())) if view.colour is not None else None


def _candidates(explorer: Explorer) -> dict[str, Any]:
    result = explorer.candidates()
    session = explorer.need_session()
    position = explorer.position
    following = session.ids[position + 1] if position + 1 < len(session.ids) else None
    tokenizer = session.model.tokenizer
    ids = [int(token_id) for token_id in result.token_id.values]
    return {
        "ids": ids,
        "tokens": [_visible_token(tokenizer, token_id) for token_id in ids],
        "ranks": [int(rank) for rank in result["rank"].values],
        "probabilities": numbers(result.probability.values),
        "logits": numbers(result.logit.values),
        "z_scores": numbers(result.z_score.values) if explorer.state.z_scores else None,
        "selected": max(0, min(explorer.state.selected, len(ids) - 1)),
        "following": following,
        "position": position,
        "after": _visible_token(tokenizer, session.ids[position]),
        "search": explorer.state.search,
        "total": float(result.attrs["total_probability"]),
        "d_vocab": explorer.d_vocab,
    }


def _lens(explorer: Explorer) -> dict[str, Any]:
    """Top tokens of each layer at the positions around the one looked at."""
    result = explorer(logit_lens)
    session = explorer.need_session()
    last = min(len(session.ids), explorer.position + _LENS_AFTER + 1)
    first = max(0, last - _LENS_COLUMNS)
    tokenizer = session.model.tokenizer
    ids = result.top_token_id.values[:, first:last]  # [layer, position, rank]
    probabilities = result.top_probability.values[:, first:last]
    completeness = float(result.attrs.get("completeness", np.nan))
    level = "good" if completeness <= 1e-3 else "near" if completeness <= 1e-2 else "bad"
    return {
        "first": first,
        "position": explorer.position,
        "tokens": [_visible_token(tokenizer, token_id) for token_id in session.ids[first:last]],
        "cells": [
            [
                {"tokens": [_visible_token(tokenizer, token_id) for token_id in cell], "probabilities": numbers(shares)}
                for cell, shares in zip(row_ids, row_shares)
            ]
            for row_ids, row_shares in zip(ids, probabilities)
        ],
        "badge": asdict(Badge(f"Δ {brief(completeness)}", level, "Largest |Δ log p| between the last row and the model itself.")),
    }


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
    depth = 0
    while prompt.parent is not None and prompt.parent in by_key:
        prompt, depth = by_key[prompt.parent], depth + 1
    return depth


def _status(explorer: Explorer) -> dict[str, Any]:
    state, session = explorer.state, explorer.session
    idle = explorer.options.without_effect
    note = {"kind": "info", "text": f"No effect yet: {', '.join(idle)}."} if idle else None
    part: dict[str, Any] = {
        "acknowledged": state.acknowledged,
        "message": state.message or note,
        "editor": state.editor,
        "views": [{"name": view.name, "label": view.label, "short": view.short} for view in explorer.views.values()],
        "cursor": None,
        "n": 0,
        "theme": state.theme,
        "playing": state.playing,
    }
    if session is not None:
        part |= {"cursor": session.state.cursor, "n": len(session.ids), "text": session.text, "n_ctx": model_info(session.model).n_ctx}
    return part


def numbers(values: np.ndarray) -> list[float | None]:
    """Values for the browser: five significant digits are more than it shows, and NaN is None."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


def _visible_token(tokenizer: Any, token_id: int) -> str:
    return _visible(tokenizer, int(token_id))


@lru_cache(maxsize=100_000)
def _visible(tokenizer: Any, token_id: int) -> str:
    text = visible(token_text(tokenizer, token_id))
    return text if len(text) <= _LONGEST_TOKEN else text[: _LONGEST_TOKEN - 1] + "…"


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids)


@lru_cache(maxsize=64)
def _decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    text = str(tokenizer.decode(list(ids)))
    return text if len(text) <= 400 else text[:200] + " … " + text[-190:]
