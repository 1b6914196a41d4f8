"""From the residual stream to one head's attention scores, read off the model as numbers: projections, norms, rotation, scale, soft cap, ALiBi.

Everything is linear in the residual stream but the scales of norms, which are held at their values in the run, and the soft cap, which comes last.
A ``TransformerBridge`` wraps Hugging Face's own modules, and these name things each in their way. So whatever is read here is compared with what the
model computed, its queries, its keys and its pattern, and refused where it differs by more than rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.analyses.base import check_finite
from lensplorer.analyses.contributions import norm_between, stream_terms
from lensplorer.analyses.unembedding import ROUNDING
from lensplorer.errors import AnalysisError
from lensplorer.models import model_info
from lensplorer.norms import Norm, read_norm

if TYPE_CHECKING:
    from lensplorer.trace import Trace

#: What reading a head's queries and keys takes, of the blocks before it and of its own.
SCORE_READS = (
    "hook_embed",
    "hook_pos_embed",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_attn_out",
    "blocks.*.hook_mlp_out",
    "blocks.*.attn.hook_z",
    "blocks.*.attn.hook_q",
    "blocks.*.attn.hook_k",
    "blocks.*.attn.hook_cos",
    "blocks.*.attn.hook_sin",
    "blocks.*.attn.hook_pattern",
)

#: How Hugging Face's attention modules call what they multiply scores by. GPT-Neo has none, and multiplies by nothing.
_SCALES = ("scaling", "inv_norm_factor", "softmax_scale")


class Projection:
    """One head's queries or keys as a linear map of the residual stream entering its block, the scales of norms held.

    Args:
        trace: one that read ``SCORE_READS``.
        layer, head: of the queries; heads that share keys have the same.
        kind: ``"q"`` or ``"k"``.
        position: where it is measured whether the block norms its input first, counted as ``trace.read`` counts.

    Raises:
        AnalysisError: the model has no such projection.
    """

    def __init__(self, trace: Trace, layer: int, head: int, kind: str, position: int) -> None:
        attention: Any = trace.model.blocks[layer].attn  # type: ignore[attr-defined]
        self.trace, self.layer, self.kind, self.head = trace, layer, kind, head
        self.what = {"q": "queries", "k": "keys"}[kind]
        weights, biases = (getattr(attention, f"{letter}_{kind.upper()}", None) for letter in "Wb")
        if weights is None or weights.ndim != 3:
            raise AnalysisError(
                f"The attention of block {layer} has no W_{kind.upper()} of its own for each head, as this {trace.info.architecture} is loaded:"
                f" what its {self.what} are made of cannot be told."
            )
        self.dtype = torch.promote_types(weights.dtype, torch.float32)
        mine = self._shared(len(weights))
        self.weight: torch.Tensor = weights[mine].detach().to(self.dtype)  # [d_model, d_head]
        self.bias = self.weight.new_zeros(self.weight.shape[1]) if biases is None else biases[mine].detach().to(self.dtype)  # [d_head]
        self.norm = self._norm_before(position)
        self.norm_after, self.over_all_heads = self._norm_after(getattr(attention, f"{kind}_norm", None))

    def terms(self, start: int, stop: int) -> tuple[list[str], torch.Tensor]:
        """The terms at some positions, with all that is between the projection and the product of queries and keys.

        Returns:
            Their names, and [term, position, d_head]. "bias" is what is added whatever stands in the stream; "interventions" what the terms leave
            of the model's own queries or keys where interventions edit the stream or these.

        Raises:
            AnalysisError: the terms do not sum to what the model computed.
        """
        residual = self._read("hook_resid_pre", start, stop)  # [position, d_model]
        readers, constant, scale = self.weight, self.bias, residual.new_ones(1)
        if self.norm is not None:
            scale = self.norm.scale(residual)  # [position, 1]
            constant = constant + self.norm.constant(readers)
            readers = self.norm.pull_back(readers, scale.new_ones(1))
        found = {name: value / scale for name, value in stream_terms(self.trace, self.layer, start, stop, readers).items()}
        found["bias"] = found["bias"] + constant
        made = self._made(start, stop)  # [position, head, d_head]
        own = made[:, self._shared(made.shape[1])]
        rest = own - torch.stack(list(found.values())).sum(0)
        gap = float((rest.norm(dim=-1) / torch.stack([own, *found.values()]).norm(dim=-1).amax(0).clamp_min(1e-30)).max())
        if not gap <= ROUNDING[self.trace.dtype]:
            check_finite(self.trace)
            if not self.trace.interventions:
                raise AnalysisError(
                    f"The {self.what} of head {self.layer}.{self.head} of this {self.trace.info.architecture} differ by {gap:.1e} of their norm from"
                    " what the residual stream entering its block would make of them: it does something that is not known here. Refused."
                )
            found["interventions"] = rest
        return list(found), self._rotated(self._normed(found, made), start)

    def _shared(self, n: int) -> int:
        """Which of ``n`` is this head's, where several heads share one."""
        return self.head * n // int(self.trace.model.cfg.n_heads)

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.trace.read(f"blocks.{self.layer}.{name}", start, stop).detach().to(self.dtype)

    def _made(self, start: int, stop: int) -> torch.Tensor:
        """The model's own, of all heads, before their norm and rotation. [position, head, d_head]"""
        return self._read(f"attn.hook_{self.kind}", start, stop)

    def _norm_before(self, position: int) -> Norm | None:
        """The norm of the block's input: measured, since OLMo 2 calls a norm of its output so."""
        residual, made = self._read("hook_resid_pre", position, position + 1), self._made(position, position + 1)
        norm, _ = norm_between(
            self.trace, self.layer, ["ln1"], residual, made[:, self._shared(made.shape[1])], through=lambda x: x @ self.weight + self.bias
        )
        return norm

    def _norm_after(self, module: Any) -> tuple[Norm | None, bool]:
        """The norm of queries or keys with this head's gain, and whether its scale is that of all heads together."""
        norm = None if module is None else read_norm(module, self.trace.model.cfg)
        if norm is None or norm.weight is None:
            return norm, False
        d_head = self.weight.shape[1]
        together = norm.weight.ndim == 1 and norm.weight.numel() > d_head
        if together and norm.centred:
            raise AnalysisError(f"The {self.what} of block {self.layer} are centred over all heads together: they cannot be told apart by head.")

        def own(values: torch.Tensor | None) -> torch.Tensor | None:
            rows = values if values is None or values.numel() == d_head else values.reshape(-1, d_head)
            return rows if rows is None or rows.ndim == 1 else rows[self._shared(len(rows))]

        return replace(norm, weight=own(norm.weight), bias=own(norm.bias)), together

    def _normed(self, terms: dict[str, torch.Tensor], made: torch.Tensor) -> torch.Tensor:
        """[term, position, d_head]"""
        norm = self.norm_after
        if norm is not None:
            scale = norm.scale(made.flatten(1) if self.over_all_heads else made[:, self._shared(made.shape[1])])  # [position, 1]
            terms = {name: norm.held(value, scale) for name, value in terms.items()}
            if norm.bias is not None:
                terms["bias"] = terms["bias"] + norm.bias.to(self.dtype)
        return torch.stack(list(terms.values()))

    def _rotated(self, x: torch.Tensor, start: int) -> torch.Tensor:
        """[term, position, d_head], positions from ``start`` on."""
        attention: Any = self.trace.model.blocks[self.layer].attn  # type: ignore[attr-defined]
        if model_info(self.trace.model).backend == "hooked":
            if self.trace.model.cfg.positional_embedding_type != "rotary":
                return x
            first = self.trace.n_sources - len(self.trace)
            return attention.apply_rotary(x.transpose(0, 1)[None], first + start)[0].transpose(0, 1)
        name = f"blocks.{self.layer}.attn.hook_cos"
        if name not in self.trace:
            return x
        cos, sin = (self._read(f"attn.hook_{part}", start, start + x.shape[1]) for part in ("cos", "sin"))  # [position, rotary dimension]
        turned, passed = x[..., : cos.shape[1]], x[..., cos.shape[1] :]
        one, other = turned.chunk(2, dim=-1)
        return torch.cat([turned * cos + torch.cat([-other, one], dim=-1) * sin, passed], dim=-1)


def score_scale(trace: Trace, layer: int) -> float:
    """What the product of query and key is multiplied by, as the model says."""
    attention: Any = trace.model.blocks[layer].attn  # type: ignore[attr-defined]
    if model_info(trace.model).backend == "hooked":
        return 1 / float(attention.attn_scale)
    module = attention.original_component
    if getattr(module, "scale_attn", None) is not None:  # GPT-J's, by which it divides
        return 1 / float(module.scale_attn)
    return float(next((getattr(module, name) for name in _SCALES if getattr(module, name, None) is not None), 1.0))


def score_cap(trace: Trace, layer: int) -> float | None:
    """The soft cap c of ``c · tanh(score / c)``, or None."""
    attention: Any = trace.model.blocks[layer].attn  # type: ignore[attr-defined]
    hooked = model_info(trace.model).backend == "hooked"
    cap = trace.model.cfg.attn_scores_soft_cap if hooked else getattr(attention.original_component, "attn_logit_softcapping", None)
    return float(cap) if cap is not None and cap > 0 else None


def alibi_slope(trace: Trace, head: int) -> float:
    """What ALiBi takes off a head's score for each token of distance; 0 where the model has none."""
    from transformer_lens.model_bridge.generalized_components.alibi_utils import build_alibi_slopes

    cfg = trace.model.cfg
    return float(build_alibi_slopes(int(cfg.n_heads), torch.device("cpu"))[head]) if cfg.positional_embedding_type == "alibi" else 0.0
