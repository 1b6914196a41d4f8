"""The residual stream: its norms, its similarities, and which part of the model wrote how much of a logit.

Rows of ``layer``: 0 is the embedding (positional embedding included), l is after block l - 1, so n_layers + 1 rows.

**Exact decomposition.** Each part of the model is credited with what it wrote directly to a logit; the parts sum to the whole (the method is in
``contributions``). A direct contribution is not the effect of an ablation: what later layers make of a component is not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, choose, make_result, require_finite
from lensplorer.analyses.contributions import make_goal
from lensplorer.errors import AnalysisError

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

UNITS = ("layer", "head", "neuron", "source")

_STREAM = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post")


def residual_rows(trace: Trace, start: int = 0, stop: int | None = None) -> list[torch.Tensor]:
    """The residual stream after the embedding and after each block: n_layers + 1 tensors [position, d_model], of the model's dtype.

    Of positions ``start`` to ``stop - 1``, all by default.

    Raises:
        TraceError: the trace did not read them.
    """
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(trace.n_layers))]
    return [trace.read(name, start, stop).detach() for name in names]


def final_rows(trace: Trace) -> torch.Tensor:
    """The final residual stream, before the last norm. [position, d_model], of the model's dtype"""
    return trace.read(f"blocks.{trace.n_layers - 1}.hook_resid_post").detach()


@analysis(reads=_STREAM, source="L2 norm of the residual stream after each block", along=1)
def residual_norms(trace: Trace) -> xr.Dataset:
    """How long the residual stream is at each layer and position.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time", reads=[lp.residual_norms])
    >>> lp.residual_norms(trace).norm.dims
    ('layer', 'position')

    Args:
        trace: any trace that read the residual stream.

    Returns:
        (layer, position): norm, the L2 norm of the residual stream; layer 0 is the embedding, l is after block l - 1.

    Raises:
        AnalysisError: activations are NaN or infinite; the message names the first layer.

    Cost: one pass over the residual stream.
    """
    norms = torch.stack([row.float().norm(dim=-1) for row in residual_rows(trace)])
    require_finite(trace, norms)
    return make_result(trace, residual_norms, {"norm": (["layer", "position"], norms)})


@analysis(reads=_STREAM, source="cosine of each layer's residual stream with the final layer's, same position", along=1)
def hidden_similarity(trace: Trace) -> xr.Dataset:
    """How much each layer's residual stream already points where the final one does.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time", reads=[lp.hidden_similarity])
    >>> bool((abs(lp.hidden_similarity(trace).cosine[-1] - 1) < 1e-5).all())
    True

    Args:
        trace: any trace that read the residual stream.

    Returns:
        (layer, position): cosine of h[layer] with the final residual, before the final norm; 1 in the last row.

    Raises:
        AnalysisError: activations are NaN or infinite.

    Cost: one pass over the residual stream.
    """
    rows = residual_rows(trace)
    final = _unit(rows[-1])
    cosine = torch.stack([(_unit(row) * final).sum(-1) for row in rows])
    require_finite(trace, cosine)
    return make_result(trace, hidden_similarity, {"cosine": (["layer", "position"], cosine)})


@analysis(reads=_STREAM, source="cosine of each position's final residual stream with one position's (local token bias)")
def token_similarity(trace: Trace, *, position: int = -1) -> xr.Dataset:
    """How much each token's final residual stream points where that of one position does (the local token bias).

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time", reads=[lp.token_similarity])
    >>> round(float(lp.token_similarity(trace).cosine[-1]), 4)
    1.0

    Args:
        trace: any trace that read the residual stream.
        position: the position compared with; -1 is the last.

    Returns:
        (position): cosine of the final residuals, before the final norm; attrs: position.

    Raises:
        TraceError: the position is outside the prompt.
        AnalysisError: activations are NaN or infinite.

    Cost: one pass over the last layer.
    """
    position = trace.position(position)
    final = _unit(final_rows(trace))
    cosine = final @ final[position]
    require_finite(trace, cosine)
    return make_result(trace, token_similarity, {"cosine": (["position"], cosine)}, position=position)


def _unit(residual: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(residual.float(), dim=-1)


@analysis(
    reads=(
        "hook_embed",
        "hook_pos_embed",
        *_STREAM,
        "blocks.*.hook_attn_out",
        "blocks.*.hook_mlp_out",
        "ln_final.hook_scale",
        "blocks.*.attn.hook_z",
        "blocks.*.attn.hook_v",
        "blocks.*.attn.hook_pattern",
        "blocks.*.mlp.hook_post",
    ),
    source="Elhage et al. 2021, direct logit attribution; final norm's scale frozen at its cached value",
)
def residual_decomposition(
    trace: Trace,
    target: str | int | torch.Tensor,
    *,
    versus: str | int | None = None,
    unit: str = "layer",
    position: int = -1,
    layer: int = -1,
) -> xr.Dataset:
    """How much each part of the model wrote directly to a logit, a logit difference or a direction. Exact: the parts sum to the whole.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a", reads=[lp.residual_decomposition])
    >>> parts = lp.residual_decomposition(trace, " time")
    >>> abs(float(parts.contribution.sum()) - parts.attrs["logit"]) < 1e-3
    True

    Args:
        trace: any trace that read this analysis' activations.
        target: the token whose logit is taken apart: its text (exactly one token, leading space significant) or id. Or a direction
            [d_model] after the final norm, as a column of ``model.W_U`` is.
        versus: another token; then the difference logit(target) - logit(versus) is taken apart, in which what is common cancels.
        unit: ``"layer"``, ``"head"``, ``"neuron"`` (of one block's MLP) or ``"source"`` (which token each head read it from).
        position: the position whose prediction it is; -1 is the last.
        layer: the block of ``unit="neuron"``, 0 to n_layers - 1; -1 is the last.

    Returns:
        Contributions to the logit before any soft cap.

        - ``"layer"``: (component): contribution, of "embed", "pos_embed", "attn 0", "mlp 0", …, "bias" (all constants after the last
          block) and, where interventions edit the stream itself, "interventions".
        - ``"head"``: (layer, head): contribution, and ``rest``, the sum of all else (embedding, MLPs, biases), so that with it they sum
          to the total. ``"neuron"``: (neuron), likewise. ``"source"``: (layer, head, source), likewise; over sources they sum to the head.

        What an intervention wrote over a head or a block's output came from no head or source: it is in ``rest``. attrs: target, versus,
        position; ``logit``, the model's own; ``total``, the sum (before the soft cap); ``completeness`` = |softcap(total) - logit| relative to
        the largest of the logit and the layer components.

    Raises:
        AnalysisError: an unknown unit or layer; or the model's hooks do not sum to its residual stream, or the heads or neurons not to
            their block's output, in which case the message gives the gap measured; or activations are NaN or infinite.
        TokenError: a target is not exactly one token.
        TraceError: the position is outside the prompt, or an activation was not read.

    Cost: products with the position's residuals alone; heads and sources read W_O once, from weights, never ``hook_result``.
    """
    choose("unit", unit, UNITS)
    if not -trace.n_layers <= layer < trace.n_layers:
        raise AnalysisError(f"Block {layer} does not exist: expected 0 to {trace.n_layers - 1}, or negative from the end.")
    goal = make_goal(trace, target, versus, trace.position(position))
    components = goal.layer_components()
    if unit == "layer":
        names, parts = list(components), np.stack([value.double().cpu().numpy() for value in components.values()])  # [component, direction]
        variables: dict[str, Any] = {"contribution": (["component"], goal.combine(parts))}
        coords = {"component": np.array(names, dtype=object)}
    else:
        parts, rest = goal.split(components, unit, layer % trace.n_layers)
        dims = {"head": ["layer", "head"], "neuron": ["neuron"], "source": ["layer", "head", "source"]}[unit]
        variables = {"contribution": (dims, goal.combine(parts)), "rest": ([], goal.combine(rest))}
        coords = {}
        parts = np.concatenate([parts.reshape(-1, parts.shape[-1]), rest[None]])
    totals = parts.sum(0)  # [direction]
    largest = max(float(value.abs().max()) for value in components.values())
    attrs: dict[str, Any] = {"unit": unit, **goal.attrs(totals, largest)}
    if unit == "neuron":
        attrs["layer"] = layer % trace.n_layers
    return make_result(trace, residual_decomposition, variables, coords, **attrs)
