"""Many prompts in one forward pass, and a ``Trace`` of each that equals the one it would have alone.

Prompts are sorted by length and padded at the right: a causal model cannot look there, so that no earlier position changes, and no mask is needed.
That is proved on each model by a probe. Where it does not hold, or where the rotary frequencies depend on the length of the run, only prompts of
the very same length share a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lensplorer.errors import TraceError
from lensplorer.models import LensModel, model_info
from lensplorer.running import Run, run_model
from lensplorer.segments import is_attention, position_axis
from lensplorer.trace import Trace, make_trace

#: Memory for the logits and activations of one pass. Larger passes gain nothing on a CPU.
_PASS_BYTES = 2**29
#: Rotary embeddings whose frequencies change with the length of the run.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def forward_all(model: LensModel, prompts: Sequence[Sequence[int]], reads: frozenset[str], *, pad: bool, tokens: int) -> Iterator[tuple[int, Trace]]:
    """The trace of each prompt, with its place among ``prompts``; shortest first.

    Args:
        prompts: token ids of each.
        reads: hook names.
        pad: whether prompts of different lengths may share a pass.
        tokens: how many a pass may hold, padding included; a longer prompt runs alone.

    Cost: one forward pass per group.
    """
    for group in groups([len(ids) for ids in prompts], pad=pad, tokens=tokens):
        run = run_padded(model, [prompts[at] for at in group], reads)
        for row, at in enumerate(group):
            yield at, trace_of_row(model, prompts[at], run, row)


def groups(lengths: Sequence[int], *, pad: bool, tokens: int) -> list[list[int]]:
    """Which prompts share a pass.

    >>> groups([3, 1, 2, 2], pad=True, tokens=6)
    [[1, 2, 3], [0]]
    >>> groups([3, 1, 2, 2], pad=False, tokens=6)
    [[1], [2, 3], [0]]
    """
    found: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        last = found[-1] if found else []
        fits = last and lengths[at] * (len(last) + 1) <= tokens and (pad or lengths[last[-1]] == lengths[at])
        if fits:
            last.append(at)
        else:
            found.append([at])
    return found


def run_padded(model: LensModel, prompts: Sequence[Sequence[int]], reads: frozenset[str]) -> Run:
    """One pass over prompts padded at the right, each with its own last token: any token will do, and a real one is never masked."""
    longest = max(map(len, prompts))
    rows = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prompts]
    return run_model(model, torch.tensor(rows), reads=reads)


def trace_of_row(model: LensModel, ids: Sequence[int], run: Run, row: int) -> Trace:
    """The trace of one row of a pass, padding cut off.

    Raises:
        TraceError: an activation is not per position, so that it cannot be taken apart.
    """
    n, longest = len(ids), run.logits.shape[1]
    head_first = model_info(model).backend == "bridge"
    activations = {name: _cut(name, value, row, n, longest, head_first=head_first) for name, value in run.activations.items()}
    return make_trace(model, torch.tensor(list(ids)), run.logits[row, :n], activations)


def _cut(name: str, value: torch.Tensor, row: int, n: int, longest: int, *, head_first: bool) -> torch.Tensor:
    own = value[row if value.shape[0] > 1 else 0]  # the bridge's learned positions are the same for all rows, and come once
    if is_attention(name):
        return own[..., :n, :n]
    axis = position_axis(name, own, head_first=head_first)
    if own.shape[axis] != longest:
        raise TraceError(
            f"{name!r} of shape {list(value.shape)} is not one value per position, so it cannot be run in a batch: leave it out of reads."
        )
    return own.narrow(axis, 0, n)


def padding_is_safe(model: LensModel) -> bool:
    """Whether padding at the right changes nothing before it, within rounding.

    Cost: two passes over a few tokens.
    """
    if any(kind in _LENGTH_DEPENDENT for kind in _rope_kinds(model)):
        return False
    d_vocab, n_ctx = int(model.cfg.d_vocab), model_info(model).n_ctx
    ids = [token % d_vocab for token in (11, 7, 5, 3, 13, 2)][: max(1, n_ctx // 4)]
    filler = [d_vocab - 1] * min(2 * len(ids), n_ctx - len(ids))
    alone = run_model(model, torch.tensor([ids])).logits[0].float()
    padded = run_model(model, torch.tensor([ids + filler])).logits[0, : len(ids)].float()
    accepted = 1e-4 if model_info(model).dtype in ("float32", "float64") else 5e-2
    return bool((alone - padded).abs().max() <= accepted * alone.abs().max())


def _rope_kinds(model: LensModel) -> set[str]:
    """The kinds of rotary embedding that the Hugging Face configuration names, at whatever depth."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.update(str(value[key]) for key in ("rope_type", "type") if key in value)
            for inner in value.values():
                look(inner)

    for name in ("rope_parameters", "rope_scaling"):
        look(getattr(config, name, None))
    return found


def tokens_per_pass(model: LensModel, reads: frozenset[str], longest: int) -> int:
    """How many tokens a pass may hold, by the memory of what is kept: logits, and ``reads`` at ``longest`` tokens a row."""
    cfg: Any = model.cfg
    width = max(int(cfg.d_model), int(getattr(cfg, "d_mlp", None) or 0))
    attention = sum(1 for name in reads if is_attention(name))
    numbers = 2 * int(cfg.d_vocab) + (len(reads) - attention) * width + attention * int(cfg.n_heads) * longest
    return max(64, _PASS_BYTES // (4 * numbers))
