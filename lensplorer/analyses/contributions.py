"""Exact direct contributions to a logit: the parts of ``residual_decomposition``.

The final residual is the sum of all that was written to it, and a norm with its scale frozen at the cached value is linear. So with
g = (γ ⊙ W_U[:, t], centred under LayerNorm) / scale, each component c contributes c · g, and the contributions with the constants
b_ln · W_U[:, t] + b_U[t] sum to the logit before the soft cap. Blocks with a norm after attention or MLP (Gemma 2 and 3, OLMo 2) are linear
in the same way, once more. Nothing is assumed of an architecture: each sum is compared with what the model computed, and refused where they
differ by more than rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import check_finite
from lensplorer.analyses.unembedding import ROUNDING, Unembedding
from lensplorer.errors import AnalysisError
from lensplorer.norms import Norm, read_norm
from lensplorer.running import hook_names
from lensplorer.tokens import token_texts

if TYPE_CHECKING:
    from lensplorer.trace import Trace

_EDITS_STREAM = re.compile(r"blocks\.\d+\.hook_(resid_\w+|in|out)$")

#: component → (its norm after it in post-norm blocks, in the order of trying, and None for the usual block)
_POST_NORMS = {"attn": ("ln1_post", "ln1"), "mlp": ("ln2_post", "ln2")}


@dataclass(frozen=True, eq=False)
class Goal:
    """What is taken apart: one or two directions after the final norm, read back through it at one position.

    Attributes:
        names: the target's text, and the other token's if there is one; or "direction".
        readers: the directions before the final norm, its scale frozen. [d_model, direction]
        constants: b_ln · direction + b_U. [direction]
        logits: what the model itself gives. [direction]
        tolerance: the largest relative difference that rounding explains.
    """

    trace: Trace
    position: int
    names: tuple[str, ...]
    readers: torch.Tensor
    constants: torch.Tensor
    logits: np.ndarray
    unembedding: Unembedding
    tolerance: float

    def combine(self, values: np.ndarray) -> np.ndarray:
        """Target minus versus. [..., direction] → [...]"""
        return values[..., 0] if len(self.names) == 1 else values[..., 0] - values[..., 1]

    def attrs(self, totals: np.ndarray, largest: float) -> dict[str, Any]:
        """Targets, sums and how complete they are; refuses a sum that is not the model's logit."""
        cap = self.unembedding.soft_cap if self.names[0] != "direction" else None
        sums = totals if cap is None else cap * np.tanh(totals / cap)
        logit, total = float(self.combine(self.logits)), float(self.combine(totals))
        completeness = abs(float(self.combine(sums)) - logit) / max(abs(logit), largest, 1e-30)
        if not completeness <= self.tolerance:
            check_finite(self.trace)
            raise AnalysisError(
                f"The parts of the logit of {self.names[0]!r} sum to {float(sums[0]):.6g}, but the model's is {float(self.logits[0]):.6g}:"
                f" this {self.trace.info.architecture} does something to its residual stream or logits that is not known here. Refused."
            )
        return {
            "target": self.names[0],
            "versus": self.names[1] if len(self.names) > 1 else "",
            "position": self.position,
            "logit": logit,
            "total": total,
            "completeness": completeness,
            "soft_cap": cap or 0.0,
        }

    # -- layers ------------------------------------------------------------------------------------------------------------------

    def read(self, vector: torch.Tensor) -> torch.Tensor:
        """[..., d_model] → [..., direction]"""
        return vector.detach().to(self.readers.dtype) @ self.readers

    def at(self, name: str) -> torch.Tensor | None:
        """The activation at the position, or None where the model has no such hook. [...]"""
        return self.trace.at(name, self.position).detach() if name in hook_names(self.trace.model) else None

    def layer_components(self) -> dict[str, torch.Tensor]:
        """Component → contribution [direction]; refuses where they do not sum to the residual stream."""
        written = stream_writes(self.trace, self.trace.n_layers)
        values = torch.stack([self.trace.at(hook, self.position).detach() for _, _, hook in written])  # [component, d_model]
        after = [self.trace.at("blocks.0.hook_resid_pre", self.position)]
        after += [self.trace.at(f"blocks.{layer}.hook_resid_post", self.position) for layer in range(self.trace.n_layers)]
        components = dict(zip((name for _, name, _ in written), self.read(values)))
        stream = torch.stack(after).detach().double()  # [row, d_model]
        gaps = stream.clone()
        gaps[1:] -= stream[:-1]
        gaps.index_add_(0, torch.tensor([row for row, _, _ in written], device=gaps.device), values.double(), alpha=-1)
        shares = gaps.norm(dim=-1) / stream.norm(dim=-1).clamp_min(1e-30)
        edits: torch.Tensor | None = None
        for row, share in enumerate(shares.tolist()):
            if not share <= self.tolerance:
                check_finite(self.trace)
                names = [name for at, name, _ in written if at == row]
                if not self._stream_is_edited():
                    if row == 0 and "pos_embed" not in names:
                        self.at("hook_pos_embed")  # says how to read it, where the model has one
                    raise AnalysisError(_refusal(self.trace, row, " + ".join(names), share))
                edits = gaps[row] if edits is None else edits + gaps[row]
        components["bias"] = self.constants
        if edits is not None:
            components["interventions"] = self.read(edits)
        return components

    def _stream_is_edited(self) -> bool:
        positions = range(len(self.trace))
        hooks = (name for intervention in self.trace.interventions for name, _ in intervention.hooks(self.trace.model, positions))
        return any(_EDITS_STREAM.match(name) for name in hooks)

    # -- heads, sources, neurons -----------------------------------------------------------------------------------------------------

    def split(self, components: dict[str, torch.Tensor], unit: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Contributions of the smaller units [..., direction], and of all else [direction]."""
        part, blocks = ("mlp", [layer]) if unit == "neuron" else ("attn", range(self.trace.n_layers))
        rest = sum((value.double() for name, value in components.items() if name not in {f"{part} {block}" for block in blocks}))
        found = []
        for block in blocks:
            units, constant = self._neurons(block) if unit == "neuron" else self._heads(block, by_source=unit == "source")
            found.append(units.double())
            rest = rest + constant.double()
        parts = torch.stack(found) if unit != "neuron" else found[0]
        return parts.cpu().numpy(), torch.as_tensor(rest).cpu().numpy()

    def _heads(self, block: int, *, by_source: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """[head, direction] or [head, source, direction], and the constants of the block."""
        attention = self.trace.model.blocks[block].attn  # type: ignore[attr-defined]
        z = self._required(f"blocks.{block}.attn.hook_z", "heads").to(self.readers.dtype)  # [head, d_head]
        weight = attention.W_O.detach().to(z.dtype).flatten(0, 1)  # [head · d_head, d_model], a view of the layout it is stored in
        raw = z.flatten() @ weight
        readers, constant, overwritten = self._through(block, "attn", raw, getattr(attention, "b_O", None))
        per_head = (weight @ readers).view(*z.shape, -1)  # [head, d_head, direction]
        heads = (z[:, None] @ per_head)[:, 0]
        if not by_source:
            return heads * (not overwritten), constant
        v = self.trace.read(f"blocks.{block}.attn.hook_v", 0, self.position + 1).detach().to(z.dtype)  # [source, kv_head, d_head]
        row = self.trace.at(f"blocks.{block}.attn.hook_pattern", self.position).detach().to(z.dtype)  # [head, source]
        pattern = row[:, : self.position + 1]
        v = v.transpose(0, 1)  # [head, source, d_head]
        if len(v) < len(z):  # grouped queries share keys and values
            v = v.repeat_interleave(len(z) // len(v), dim=0)
        gap = ((pattern[:, None] @ v)[:, 0] - z).norm(dim=-1) / z.norm(dim=-1).clamp_min(1e-6)  # [head]
        read_from_sources = (gap <= self.tolerance).to(z.dtype)
        if self.trace.interventions == () and not bool(read_from_sources.all()):
            raise AnalysisError(
                f"In block {block}, pattern · v differs from a head's output by {float(gap.max()):.1e} of its norm:"
                " which token each head read cannot be told for this model. Use unit='head'."
            )
        sources = pattern[:, :, None] * (v @ per_head) * read_from_sources[:, None, None]
        sources = torch.nn.functional.pad(sources, (0, 0, 0, row.shape[1] - len(pattern[0])))  # nothing is read beyond the query
        elsewhere = (heads * (1 - read_from_sources)[:, None]).sum(0)
        return sources * (not overwritten), constant if overwritten else constant + elsewhere

    def _neurons(self, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[neuron, direction], and the constants of the block's MLP."""
        mlp = self.trace.model.blocks[block].mlp  # type: ignore[attr-defined]
        activation = self._required(f"blocks.{block}.mlp.hook_post", "neurons").to(self.readers.dtype)  # [d_mlp]
        weight = getattr(mlp, "W_out", None)
        if weight is None:
            raise AnalysisError(f"The MLP of block {block} has no single W_out (a mixture of experts?): its neurons cannot be told apart.")
        weight = weight.detach().to(activation.dtype)
        readers, constant, overwritten = self._through(block, "mlp", activation @ weight, getattr(mlp, "b_out", None))
        return activation[:, None] * (weight @ readers) * (not overwritten), constant

    def _required(self, name: str, what: str) -> torch.Tensor:
        value = self.at(name)
        if value is None:
            raise AnalysisError(f"This {self.trace.info.architecture} has no {name!r}: its {what} cannot be told apart.")
        return value

    def _through(self, block: int, part: str, raw: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """The readers before what follows ``raw`` in its block, the constants added on the way, and whether the output was overwritten.

        What follows is an output bias, and in post-norm blocks a norm.
        """
        output = self.trace.at(f"blocks.{block}.hook_{part}_out", self.position).detach().to(raw.dtype)
        biased = raw if bias is None else raw + bias.detach().to(raw.dtype)
        norm, gap = norm_between(self.trace, block, _POST_NORMS[part], biased, output)
        if not gap <= self.tolerance:
            if self.trace.interventions:
                return self.readers, self.read(output), True
            raise AnalysisError(
                f"In block {block}, the {'heads' if part == 'attn' else 'neurons'} sum to something else than its {part} output"
                f" (gap {gap:.1e} of its norm): they cannot be told apart for this {self.trace.info.architecture}. Use unit='layer'."
            )
        readers, constant = self.readers, self.readers.new_zeros(self.readers.shape[1])
        if norm is not None:
            constant = norm.constant(readers)
            readers = norm.pull_back(readers, norm.scale(biased))
        if bias is not None:
            constant = constant + bias.detach().to(readers.dtype) @ readers
        return readers, constant, False


def _refusal(trace: Trace, row: int, parts: str, share: float) -> str:
    where = "The embedding" if row == 0 else f"Block {row - 1}"
    return (
        f"{where} of this {trace.info.architecture} does not add up: the residual stream before it + {parts or 'nothing'} differs from the one"
        f" after it by {share:.1e} of its norm. Its hooks show something else than what is added, so a decomposition would be wrong and is refused."
    )


def stream_writes(trace: Trace, n_blocks: int) -> list[tuple[int, str, str]]:
    """What is written to the residual stream before block ``n_blocks``, in order: the row (0: the embeddings, b + 1: block b), the component's
    name and the hook that shows it."""
    writes = [(0, "embed", "hook_embed")]
    if "hook_pos_embed" in trace:  # some models have the hook and never reach it
        writes.append((0, "pos_embed", "hook_pos_embed"))
    writes += [(block + 1, f"{part} {block}", f"blocks.{block}.hook_{part}_out") for block in range(n_blocks) for part in ("attn", "mlp")]
    return [(row, name, hook) for row, name, hook in writes if hook in hook_names(trace.model)]


def norm_between(
    trace: Trace,
    block: int,
    names: Sequence[str],
    before: torch.Tensor,
    after: torch.Tensor,
    through: Callable[[torch.Tensor], torch.Tensor] = lambda normed: normed,
) -> tuple[Norm | None, float]:
    """Which of a block's norms called ``names`` lies between ``before`` and ``after``, None if none does; and how far it is from making the one of
    the other.

    It is not looked up but measured: the one that comes nearest, relative to the norm of ``after``, over all rows.

    Args:
        before, after: [..., d_model]
        through: what ``after`` is of what was normed.
    """
    module = trace.model.blocks[block]  # type: ignore[attr-defined]
    norms: list[Norm | None] = [None]
    norms += [read_norm(getattr(module, name), trace.model.cfg) for name in names if hasattr(module, name)]
    size = after.norm(dim=-1).clamp_min(1e-30)
    gaps = [float(((after - through(before if norm is None else norm(before))).norm(dim=-1) / size).max()) for norm in norms]
    best = min(range(len(norms)), key=gaps.__getitem__)
    return norms[best], gaps[best]


def stream_terms(trace: Trace, n_blocks: int, start: int, stop: int, readers: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each term of the residual stream entering block ``n_blocks`` says along some directions.

    Args:
        trace: one that read what is written to the stream, and ``hook_z``.
        n_blocks: the block.
        start, stop: which positions; of a window of a stepped trace, those before it are negative.
        readers: the directions. [d_model, direction]

    Returns:
        "embed", "pos_embed", "head 0.0", …, "mlp 0", … and "bias" (what attention adds whatever it reads) → [position, direction]. "attn 0" stands
        for the heads of a block whose output is not what they make, as where an intervention wrote over it.
    """
    terms: dict[str, torch.Tensor] = {}
    bias = readers.new_zeros(stop - start, readers.shape[1])
    for row, name, hook in stream_writes(trace, n_blocks):
        output = trace.read(hook, start, stop).detach().to(readers.dtype)  # [position, d_model]
        heads = _head_terms(trace, row - 1, start, stop, output, readers) if name.startswith("attn") else None
        if heads is None:
            terms[name] = output @ readers
        else:
            terms |= {f"head {row - 1}.{head}": value for head, value in enumerate(heads[0])}
            bias = bias + heads[1]
    return {**terms, "bias": bias}


def _head_terms(
    trace: Trace, block: int, start: int, stop: int, output: torch.Tensor, readers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Each head of a block [head, position, direction], and what its attention adds besides [position, direction]; None if that is not its output."""
    attention = trace.model.blocks[block].attn  # type: ignore[attr-defined]
    hook = f"blocks.{block}.attn.hook_z"
    if hook not in hook_names(trace.model):
        return None
    z = trace.read(hook, start, stop).detach().to(readers.dtype)  # [position, head, d_head]
    weight = attention.W_O.detach().to(readers.dtype).flatten(0, 1)  # [head · d_head, d_model]
    bias = getattr(attention, "b_O", None)
    made = z.flatten(1) @ weight
    made = made if bias is None else made + bias.detach().to(made.dtype)
    norm, gap = norm_between(trace, block, _POST_NORMS["attn"], made, output)
    if not gap <= ROUNDING[trace.dtype]:
        return None
    constant, scale = readers.new_zeros(readers.shape[1]), readers.new_ones(1)
    if norm is not None:
        constant, scale = norm.constant(readers), norm.scale(made)  # [position, 1]
        readers = norm.pull_back(readers, scale.new_ones(1))
    heads = z.transpose(0, 1) @ (weight @ readers).view(*z.shape[1:], -1) / scale  # [head, position, direction]
    added = readers.new_zeros(readers.shape[1]) if bias is None else bias.detach().to(readers.dtype) @ readers
    return heads, added / scale + constant


def make_goal(trace: Trace, target: str | int | torch.Tensor, versus: str | int | None, position: int) -> Goal:
    """What ``residual_decomposition`` is asked to take apart, from its arguments."""
    unembedding = Unembedding(trace.model)
    final = trace.at(f"blocks.{trace.n_layers - 1}.hook_resid_post", position).detach().to(unembedding.dtype)
    if isinstance(target, torch.Tensor) and target.ndim > 0:
        if versus is not None:
            raise AnalysisError("versus names a token, and target is a direction: give the difference of two directions as target instead.")
        if target.shape != final.shape:
            raise AnalysisError(f"A target direction has shape [d_model] = [{len(final)}], got {list(target.shape)}.")
        names: tuple[str, ...] = ("direction",)
        directions = target.detach().to(final)[:, None]
        constants = directions.new_zeros(1)
        logits = (unembedding.normed(final) @ directions).double().cpu().numpy()
    else:
        ids = [trace.token_id(token) for token in (target, versus) if token is not None]  # type: ignore[arg-type]
        names = tuple(token_texts(trace.model.tokenizer, ids))
        directions = unembedding.weight[:, ids].to(final.dtype)  # [d_model, direction]
        constants = directions.new_zeros(len(ids)) if unembedding.bias is None else unembedding.bias[ids].to(final.dtype)
        logits = trace.logits_at(position, position + 1)[0, ids].detach().double().cpu().numpy()
    readers = directions
    if unembedding.norm is not None:
        scale = trace.at("ln_final.hook_scale", position).detach().to(final.dtype)  # [1]
        constants = constants + unembedding.norm.constant(directions)
        readers = unembedding.norm.pull_back(directions, scale)
    return Goal(trace, position, names, readers, constants, logits, unembedding, ROUNDING[trace.dtype])
