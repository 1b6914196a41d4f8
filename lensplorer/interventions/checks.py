"""Whether an edit means what it says on a model. Measured on a run of four tokens, not looked up: a hook whose edited value goes nowhere,
or a block whose outputs are not what is added to the residual stream, is refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lensplorer.errors import AnalysisError, TraceError, did_you_mean
from lensplorer.models import LensModel, model_info
from lensplorer.running import hook_names, run_model

_PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result", "hook_pattern", "hook_attn_scores")

#: model → question → the reason why not, or an empty text
_found: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()


def check_hook(model: LensModel, name: str) -> None:
    """
    Raises:
        AnalysisError: the hook is of a block that the model does not have.
        TraceError: the model has no such hook; the message offers the nearest.
    """
    if name in hook_names(model):
        return
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        check_layer(model, int(block.group(1)))
    if name.endswith("hook_resid_mid") and name.replace("resid_mid", "resid_pre") in hook_names(model):
        raise TraceError(
            f"This model has no activation {name!r}: attention and MLP of its blocks read the same stream in parallel, and nothing lies between them."
        )
    raise TraceError(f"This model has no activation {name!r}.{did_you_mean(name, hook_names(model))}")


def check_editable(model: LensModel, name: str) -> None:
    """
    Raises:
        TraceError: the model has no such hook.
        AnalysisError: the model does not compute with what the hook gives back.

    Cost: two runs of four tokens, the first time a hook of this model is asked about.
    """
    check_hook(model, name)
    _check(model, name, lambda: _unused(model, name))


def check_layer(model: LensModel, layer: int, *, rows: bool = False) -> None:
    """
    Args:
        rows: count the rows of the residual stream, of which there is one more than blocks.

    Raises:
        AnalysisError: there is no such block.
    """
    last = int(model.cfg.n_layers) - (0 if rows else 1)
    if not 0 <= layer <= last:
        raise AnalysisError(f"Layer {layer} is outside {model_info(model).name!r}: expected 0 to {last}.")


def has_heads(name: str) -> bool:
    """Whether the activation has one row per head."""
    return name.endswith(_PER_HEAD)


def check_heads(model: LensModel, name: str, heads: tuple[int, ...] | None) -> None:
    """
    Raises:
        AnalysisError: the activation has no heads, or not so many.
    """
    if heads is None:
        return
    if not has_heads(name):
        raise AnalysisError(f"{name!r} has no heads to choose. These have: {', '.join(_PER_HEAD)}.")
    n = int(model.cfg.n_heads)
    if name.endswith(("hook_k", "hook_v")):
        n = int(getattr(model.cfg, "n_key_value_heads", None) or n)
    if heads[-1] >= n:
        raise AnalysisError(f"Head {heads[-1]} is outside {name!r} of {model_info(model).name!r}: expected 0 to {n - 1}.")


def check_writes(model: LensModel, layer: int) -> None:
    """
    Raises:
        AnalysisError: attention and MLP outputs of the block are not what it adds: with both zero it must add nothing.
    """
    _check(model, f"writes {layer}", lambda: _adds_more(model, layer))


def _check(model: LensModel, question: str, answer: Callable[[], str]) -> None:
    found = _found.setdefault(model, {})
    if question not in found:
        found[question] = answer()
    if found[question]:
        raise AnalysisError(found[question])


def _probe(model: LensModel) -> torch.Tensor:
    return torch.arange(1, 5).remainder(int(model.cfg.d_vocab))[None]


def _unused(model: LensModel, name: str) -> str:
    info = model_info(model)
    reached = []

    def halve(value: torch.Tensor, hook: Any) -> torch.Tensor:
        reached.append(name)
        return value * 0.5 + 0.01

    try:
        logits = run_model(model, _probe(model), hooks=[(name, halve)]).logits
    except ValueError as error:  # the bridge refuses hooks that are switched off
        return f"{name!r} of {info.name!r} cannot be edited: {error}"
    if not reached:
        return f"{name!r} of {info.name!r} cannot be edited: a run does not reach it. Some hooks are off by default in the model."
    if torch.equal(logits, run_model(model, _probe(model)).logits):
        what = "attention pattern" if name.endswith("hook_pattern") else "value"
        return (
            f"{name!r} of {info.name!r} ({info.architecture}, {info.backend}) is read-only: the model shows this {what} but computes with another."
            + (" Edit hook_z, or load with backend='hooked' if it can." if info.backend == "bridge" else "")
        )
    return ""


def _adds_more(model: LensModel, layer: int) -> str:
    before, after = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
    outputs = [name for part in ("attn", "mlp") if (name := f"blocks.{layer}.hook_{part}_out") in hook_names(model)]
    run = run_model(model, _probe(model), reads=[before, after], hooks=[(name, lambda value, hook: torch.zeros_like(value)) for name in outputs])
    gap = float((run.activations[after] - run.activations[before]).norm() / run.activations[before].norm().clamp_min(1e-30))
    if gap > 1e-5:
        return (
            f"Block {layer} of {model_info(model).name!r} still changes the residual stream by {gap:.1e} of its norm with attention and MLP outputs"
            " at zero: its hooks show something else than what it adds, so it cannot be ablated there. Ablate heads at hook_z."
        )
    return ""
