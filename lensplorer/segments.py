"""Where a ``TokenTree`` keeps what the model did: stretches of consecutive positions.

One position's activations, keys, values and logits lie side by side in one row per dtype, so a step writes one row, whatever the number of
activations, and an activation of a stretch is a view. Attention has a row per query as long as the query's position, kept apart, with
zeros beyond the query. Tensors that the model names twice (``hook_resid_post`` of a block is ``hook_resid_pre`` of the next) are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

import torch

from lensplorer.errors import TraceError
from lensplorer.models import LensModel
from lensplorer.trace import Trace

#: The logits' place among the activations: no hook has this name.
LOGITS = "logits"

#: Stretches with the absolute positions taken of each, in order.
Pieces: TypeAlias = "list[tuple[Stretch, int, int]]"


def is_attention(name: str) -> bool:
    """Whether the activation is [head, query, source]."""
    return name.endswith(("hook_pattern", "hook_attn_scores"))


def _beyond_query(name: str) -> float:
    """What stands beyond the query: no weight, or the score of something masked."""
    return float("-inf") if name.endswith("hook_attn_scores") else 0.0


def position_axis(name: str, value: torch.Tensor, *, head_first: bool) -> int:
    """Which axis of an activation without batch dimension is the position.

    The bridge's norms of queries and keys see [head, position, d_head]; everything else has the position first.
    """
    if not head_first or value.ndim != 3:
        return 0
    return int(any(part in name for part in (".q_norm.", ".k_norm.", ".hook_q_normed", ".hook_k_normed")))


def new_positions(name: str, value: torch.Tensor, n_new: int, n_total: int, *, head_first: bool) -> torch.Tensor:
    """The activation of the new positions of a run with a past, position first. [new position, ...]

    HookedTransformer rotates past keys again in each run, so ``hook_rot_k`` covers all positions.

    Raises:
        TraceError: it is not per position, so it cannot be stepped.
    """
    axis = position_axis(name, value, head_first=head_first)
    moved = value.movedim(axis, 0) if axis else value
    if moved.shape[0] == n_new:
        return moved
    if moved.shape[0] == n_total:
        return moved[-n_new:]
    raise TraceError(f"{name!r} of shape {list(value.shape)} is not one value per position, so it cannot be stepped: leave it out of reads.")


@dataclass(frozen=True)
class _Place:
    """Where in a row an activation lies."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]  # of one position


@dataclass(frozen=True)
class Layout:
    """How a row is made up. Equal for all runs of a tree, unless an intervention separates tensors that were one.

    Attributes:
        places: name → place, of what is [position, ...].
        rows: (dtype, names, row length) of each kind of row.
        attention: (dtype, heads, names) of each kind of attention row.
        same: name → name under which the same tensor is kept.
    """

    places: tuple[tuple[str, _Place], ...]
    rows: tuple[tuple[torch.dtype, tuple[str, ...], int], ...]
    attention: tuple[tuple[torch.dtype, int, tuple[str, ...]], ...]
    same: tuple[tuple[str, str], ...]

    @cached_property
    def _same(self) -> dict[str, str]:
        return dict(self.same)

    @cached_property
    def _places(self) -> dict[str, _Place]:
        return dict(self.places)

    @cached_property
    def _kinds(self) -> dict[str, tuple[torch.dtype, int]]:
        return {name: (dtype, heads) for dtype, heads, names in self.attention for name in names}

    @classmethod
    def of(cls, values: Mapping[str, torch.Tensor]) -> Layout:
        """The layout of a run's values: [new position, ...], or [head, new query, source]."""
        first: dict[Any, str] = {}
        same = {name: first.setdefault((v.data_ptr(), v.shape, v.stride(), v.dtype), name) for name, v in values.items()}
        places: dict[str, _Place] = {}
        rows: dict[torch.dtype, tuple[list[str], int]] = {}
        attention: dict[tuple[torch.dtype, int], list[str]] = {}
        for name, value in values.items():
            if same[name] != name:
                continue
            if is_attention(name):
                attention.setdefault((value.dtype, value.shape[0]), []).append(name)
                continue
            names, length = rows.get(value.dtype, ([], 0))
            shape = tuple(value.shape[1:])
            places[name] = _Place(value.dtype, length, shape)
            rows[value.dtype] = ([*names, name], length + prod(shape))
        return cls(
            tuple(places.items()),
            tuple((dtype, tuple(names), length) for dtype, (names, length) in rows.items()),
            tuple((dtype, heads, tuple(names)) for (dtype, heads), names in attention.items()),
            tuple(same.items()),
        )

    def fits(self, values: Mapping[str, torch.Tensor]) -> bool:
        """Whether it is the layout of these values too, or one that wastes no more than room: cheaper than to make and compare."""
        if values.keys() != self._same.keys():
            return False
        for name, value in values.items():
            first = self._same[name]
            if first != name:
                other = values[first]
                if value.data_ptr() != other.data_ptr() or value.shape != other.shape or value.stride() != other.stride():
                    return False
            elif name in self._places:
                place = self._places[name]
                if value.dtype != place.dtype or value.shape[1:] != place.shape:
                    return False
            elif (value.dtype, value.shape[0]) != self._kinds[name]:
                return False
        return True

    def row_bytes(self) -> int:
        """Bytes of one position without its attention."""
        return sum(dtype.itemsize * length for dtype, _, length in self.rows)

    def source_bytes(self) -> int:
        """Bytes of one position's attention to one source."""
        return sum(dtype.itemsize * heads * len(names) for dtype, heads, names in self.attention)

    def n_bytes(self, start: int, capacity: int) -> int:
        """Bytes of a stretch of ``capacity`` positions from ``start``."""
        return capacity * (self.row_bytes() + self.source_bytes() * (start + capacity))


class Stretch:
    """Room for ``capacity`` consecutive positions from ``start`` on; what is written is never written over.

    A trace holds on to the stretches that it was made of, so dropping one from the tree leaves the trace whole.
    """

    def __init__(self, layout: Layout, start: int, capacity: int, device: torch.device) -> None:
        self.layout, self.start, self.capacity = layout, start, capacity
        self._places, self._same = dict(layout.places), dict(layout.same)
        self._rows = {dtype: torch.empty(capacity, length, dtype=dtype, device=device) for dtype, _, length in layout.rows}
        self._attention = {  # [query, activation, head, source]
            (dtype, heads): torch.empty(capacity, len(names), heads, start + capacity, dtype=dtype, device=device)
            for dtype, heads, names in layout.attention
        }
        self._attention_index = {name: (dtype, heads, i) for dtype, heads, names in layout.attention for i, name in enumerate(names)}

    @property
    def n_bytes(self) -> int:
        return self.layout.n_bytes(self.start, self.capacity)

    def write(self, at: int, values: Mapping[str, torch.Tensor]) -> None:
        """Write a run's values from row ``at`` on."""
        for dtype, names, _ in self.layout.rows:
            n_new = values[names[0]].shape[0]
            torch.cat([values[name].reshape(n_new, -1) for name in names], dim=1, out=self._rows[dtype][at : at + n_new])
        for name, (dtype, heads, i) in self._attention_index.items():
            value = values[name]  # [head, query, source]
            n_new, n_sources = value.shape[1:]
            rows = self._attention[dtype, heads][at : at + n_new, i].transpose(0, 1)  # [head, query, room for sources]
            rows[:, :, :n_sources] = value
            rows[:, :, n_sources:] = _beyond_query(name)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """A view of the activation at the absolute positions. [position, ...], or [head, query, source up to stop]"""
        name = self._same[name]
        a, b = start - self.start, stop - self.start
        if name in self._attention_index:
            dtype, heads, i = self._attention_index[name]
            return self._attention[dtype, heads][a:b, i, :, :stop].transpose(0, 1)
        place = self._places[name]
        width = prod(place.shape)
        return self._rows[place.dtype][a:b, place.offset : place.offset + width].view(b - a, *place.shape)


class PathActivations(dict[str, torch.Tensor]):
    """The activations of a path, each put together when it is first asked for.

    A dictionary in every respect; a path of one stretch costs nothing, and of several one copy per activation used.
    """

    def __init__(self, pieces: Sequence[tuple[Stretch, int, int]], names: Sequence[str], *, head_first: bool) -> None:
        super().__init__(dict.fromkeys(names))  # type: ignore[arg-type]
        self._pieces, self._head_first = list(pieces), head_first

    def __getitem__(self, name: str) -> torch.Tensor:
        value = super().__getitem__(name)
        if value is None:
            value = join(self._pieces, name, head_first=self._head_first)
            super().__setitem__(name, value)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 - it is the definition

    def values(self) -> Iterator[torch.Tensor]:  # type: ignore[override]
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:  # type: ignore[override]
        return ((name, self[name]) for name in self)

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)


def join(pieces: Sequence[tuple[Stretch, int, int]], name: str, *, head_first: bool) -> torch.Tensor:
    """One activation over (stretch, start, stop) pieces that follow each other, in the shape in which the model gives it."""
    parts = [stretch.read(name, start, stop) for stretch, start, stop in pieces]
    if is_attention(name):
        n_sources = pieces[-1][2]
        if len(parts) == 1:
            return parts[0]
        joined = parts[0].new_full((parts[0].shape[0], sum(part.shape[1] for part in parts), n_sources), _beyond_query(name))
        row = 0
        for part in parts:
            joined[:, row : row + part.shape[1], : part.shape[2]] = part
            row += part.shape[1]
        return joined
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    return value.movedim(0, position_axis(name, value, head_first=head_first))


class SteppedTrace(Trace):
    """A ``Trace`` whose logits, like its activations, are put together when they are first used."""

    _logits: torch.Tensor | Pieces

    def __init__(
        self,
        model: LensModel,
        tokens: torch.Tensor,
        token_texts: list[str],
        logits: torch.Tensor | Pieces,
        cache: Any,
        interventions: tuple[Any, ...] = (),
        embeddings: torch.Tensor | None = None,
    ) -> None:
        values = dict(model=model, tokens=tokens, token_texts=token_texts, cache=cache, interventions=interventions, embeddings=embeddings)
        for name, value in {**values, "_logits": logits}.items():
            object.__setattr__(self, name, value)  # as the frozen dataclass itself does

    @property
    def logits(self) -> torch.Tensor:
        logits = self._logits
        if not isinstance(logits, torch.Tensor):
            logits = join(logits, LOGITS, head_first=False)
            object.__setattr__(self, "_logits", logits)
        return logits
