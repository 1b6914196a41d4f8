"""Where a ``TokenTree`` keeps what cannot be made again cheaply: stretches of consecutive positions.

A stretch has the residual stream entering each block, and the final one. Everything else that the model does at a position is a function of these
and of keys and values, and is made again where somebody looks (see ``paths``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lensplorer.errors import TraceError
from lensplorer.kvcache import KeysValues
from lensplorer.models import LensModel


def is_attention(name: str) -> bool:
    """Whether the activation is [head, query, source]."""
    return name.endswith(("hook_pattern", "hook_attn_scores"))


def beyond_query(name: str) -> float:
    """What stands beyond the query: no weight, or the score of something masked."""
    return float("-inf") if name.endswith("hook_attn_scores") else 0.0


def position_axis(name: str, value: torch.Tensor, *, head_first: bool) -> int:
    """Which axis of an activation without batch dimension is the position.

    The bridge's norms of queries and keys see [head, position, d_head]; everything else but attention has the position first.
    """
    if not head_first or value.ndim != 3:
        return 0
    return int(any(part in name for part in (".q_norm.", ".k_norm.", ".hook_q_normed", ".hook_k_normed")))


def new_positions(name: str, value: torch.Tensor, n_new: int, n_total: int, *, head_first: bool) -> torch.Tensor:
    """The activation of the new positions of a run with a past, in the model's own order of axes.

    HookedTransformer rotates past keys again in each run, so ``hook_rot_k`` covers all positions.

    Raises:
        TraceError: it is not per position, so it cannot be stepped.
    """
    axis = 1 if is_attention(name) else position_axis(name, value, head_first=head_first)
    if value.shape[axis] == n_new:
        return value
    if value.shape[axis] == n_total:
        return value.narrow(axis, n_total - n_new, n_new)
    raise TraceError(f"{name!r} of shape {list(value.shape)} is not one value per position, so it cannot be stepped: leave it out of reads.")


def stream_names(model: LensModel) -> list[str]:
    """The activations of a stretch, in their order."""
    n_layers = int(model.cfg.n_layers)
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]


def stream_bytes(model: LensModel) -> int:
    """Bytes of the residual stream of one position."""
    cfg = model.cfg
    return (int(cfg.n_layers) + 1) * int(cfg.d_model) * int(cfg.dtype.itemsize)


class Stretch:
    """Room for ``capacity`` consecutive positions; what is written is never written over.

    Attributes:
        stream: the residual stream entering each block, and the final one. [n_layers + 1, capacity, d_model]
    """

    def __init__(self, model: LensModel, capacity: int) -> None:
        cfg = model.cfg
        with torch.inference_mode(False):  # it is written to wherever the tree is used
            self.stream = torch.empty(int(cfg.n_layers) + 1, capacity, int(cfg.d_model), dtype=cfg.dtype, device=torch.device(str(cfg.device)))

    @property
    def n_bytes(self) -> int:
        return self.stream.nbytes

    def write(self, at: int, stream: Sequence[torch.Tensor]) -> None:
        """Write a run's residual stream from row ``at`` on. n_layers + 1 of [new position, d_model]"""
        rows = torch.stack(list(stream))
        self.stream[:, at : at + rows.shape[1]] = rows


class Parked:
    """Keys and values of positions ``start`` to ``stop - 1``, while the path in use is another."""

    def __init__(self, start: int, stop: int, values: KeysValues) -> None:
        self.start, self.stop, self.values = start, stop, values
        self.n_bytes = sum(tensor.nbytes for pair in values for tensor in pair)

    def without(self, start: int, stop: int) -> list[Parked]:
        """What is left without positions ``start`` to ``stop - 1``."""
        if self.stop <= start or stop <= self.start:
            return [self]
        return [self._rows(a, b) for a, b in ((self.start, start), (stop, self.stop)) if a < b]

    def _rows(self, start: int, stop: int) -> Parked:
        rows = slice(start - self.start, stop - self.start)
        return Parked(start, stop, [(keys[:, :, rows].clone(), values[:, :, rows].clone()) for keys, values in self.values])
