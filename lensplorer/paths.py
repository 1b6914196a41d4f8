"""Reading a path of a ``TokenTree``: what is kept, and what is made again where somebody looks.

Kept are the residual stream entering each block, the final one, and keys and values. The rest is made again from them by the model itself (see
``replay``): logits of some positions by its last norm and unembedding alone, an activation of a block by that block alone, and all activations of
one position by one step over it. The positions looked at last keep theirs, within a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.details import own
from lensplorer.errors import TraceError
from lensplorer.locks import model_lock
from lensplorer.nodes import Node, segments_to
from lensplorer.pathcache import piece_length
from lensplorer.replay import Part
from lensplorer.running import Run
from lensplorer.segments import beyond_query, is_attention, new_positions, position_axis
from lensplorer.tokens import token_texts
from lensplorer.trace import Trace

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.stepping import TokenTree

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_VALUES = re.compile(r"blocks\.(\d+)\.attn\.hook_v$")
_ROUNDING = 64  # times the resolution of a dtype: what a product in another order differs by
_BY_ITSELF = 2  # positions up to which a window has the details of each


class Path:
    """The path to one node, read by name and position.

    Args:
        tree: whose node it is.
        node: the end of the path.

    Attributes:
        weights: those of the model when the path was asked for.
    """

    def __init__(self, tree: TokenTree, node: Node) -> None:
        self.tree, self.node = tree, node
        self.weights = tree.cache.weights
        self._stream = {name: row for row, name in enumerate(tree.cache.stream)}
        self._head_first = tree.cache.head_first

    def ids(self, start: int, stop: int) -> list[int]:
        """The tokens at some positions."""
        return [node.token_id or 0 for node in self._nodes(start, stop)]

    def _nodes(self, start: int, stop: int) -> list[Node]:
        found: list[Node] = []
        step = self.node
        while len(step) > start and step.parent is not None:
            if len(step) <= stop:
                found.append(step)
            step = step.parent
        return found[::-1]

    def _require_same_weights(self) -> None:
        """
        Raises:
            TraceError: the tree has gone on with other weights.
        """
        if self.tree.cache.weights is not self.weights:
            raise TraceError("The model's weights were changed after this trace was made: ask the tree or session for it again.")

    # -- activations ---------------------------------------------------------------------------------------------------------------

    def names(self) -> dict[str, None]:
        """The activations that a run reaches, of those that the tree reads."""
        if self.tree.details.reached is None:
            self._details(self.node)
        return self.tree.details.reached or {}

    def activation(self, name: str, start: int, stop: int) -> torch.Tensor:
        """One activation at some positions, in the shape in which the model gives it; attention has sources up to ``stop``.

        Raises:
            TraceError: the model does not reach it.
        """
        self._require_same_weights()
        row = self._stream.get(name)
        if row is None and name in self.names():
            row = self.tree.details.same_as_stream.get(name)
        if row is not None:
            return self.stream(row, start, stop)
        if stop - start <= _BY_ITSELF or name not in self.names():  # what a run does not reach, details say so
            nodes = self._nodes(start, stop)
            return self._join(name, [self._detail(node, name) for node in nodes], stop)
        values = self._values(name, start, stop)
        if values is not None:
            return values
        return self._join(name, list(self._again(name, start, stop)), stop)

    def stream(self, row: int, start: int, stop: int) -> torch.Tensor:
        """The residual stream entering block ``row``, n_layers the final one; a view where it lies in one piece. [position, d_model]"""
        self.tree.cache.ensure(self.node)
        parts = []
        for segment, upto in segments_to(self.node):
            first, last = max(start, segment.start), min(stop, upto)
            if first < last and segment.stretch is not None:
                parts.append(segment.stretch.stream[row, first - segment.start : last - segment.start])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _detail(self, node: Node, name: str) -> torch.Tensor:
        found = self._details(node).get(name)
        if found is None:
            raise TraceError(f"This model has the hook {name!r} but does not reach it in a run.")
        return found.clone() if found.is_inference() else found

    def _details(self, node: Node) -> dict[str, torch.Tensor]:
        """Every activation that the tree reads, of the position of one node: as its step recorded them, or by a step over it again."""
        known = self.tree.details.of(node)
        if known is not None:
            return known
        return self.tree.details.keep(node, self._run([node.token_id or 0], len(node) - 1, reads=self.tree.cache.every, part=None))

    def _again(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        """One activation of more positions, piece by piece, by the block that makes it."""
        n_layers = int(self.tree.model.cfg.n_layers)
        found = _BLOCK.match(name)
        block = int(found[1]) if found else (0 if name in self.tree.cache.before_blocks else n_layers)
        if not self.tree.cache.by_block:
            first, last = 0, n_layers
        elif found:
            first, last = block, block + 1
        else:
            first = last = block
        for a, b in self._pieces(start, stop):
            residual = self.stream(first, a, b)[None] if last > 0 and self.tree.cache.by_block else None
            part = Part(first, last, residual) if self.tree.cache.by_block or found else None
            run = self._run(self.ids(a, b), a, reads=[name], part=part)
            yield own(new_positions(name, run.activations[name][0], b - a, b, head_first=self._head_first))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        step = piece_length(self.tree.model, stop)
        for a in range(start, stop, step):
            yield a, min(stop, a + step)

    def _values(self, name: str, start: int, stop: int) -> torch.Tensor | None:
        """``hook_v`` out of the key-value cache, where one position shows that it is what the cache holds; else None."""
        found = _VALUES.match(name)
        if found is None or self.tree.interventions:
            return None
        own = self._details(self._nodes(stop - 1, stop)[0]).get(name)
        held = self.tree.cache.keys_values(self.node, int(found[1]), stop)[1][0].transpose(0, 1)  # [position, kv head, d_head]
        if own is None or own.shape != held[-1:].shape:
            return None
        gap, size = (own - held[-1:]).float().norm(), own.float().norm()
        if not bool(gap <= _ROUNDING * torch.finfo(own.dtype).eps * size):
            return None
        return held[start:stop].clone()

    def _run(self, ids: list[int], start: int, *, reads: Any, part: Part | None) -> Run:
        with model_lock(self.tree.model):
            return self.tree.cache.again(self.node, ids, start, reads=reads, part=part)

    def _join(self, name: str, parts: list[torch.Tensor], n_sources: int) -> torch.Tensor:
        """Consecutive positions of one activation; attention with nothing beyond each query."""
        if is_attention(name):
            if len(parts) == 1 and parts[0].shape[2] == n_sources:
                return parts[0]
            joined = parts[0].new_full((parts[0].shape[0], sum(part.shape[1] for part in parts), n_sources), beyond_query(name))
            row = 0
            for part in parts:
                joined[:, row : row + part.shape[1], : part.shape[2]] = part
                row += part.shape[1]
            return joined
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=position_axis(name, parts[0], head_first=self._head_first))

    # -- logits --------------------------------------------------------------------------------------------------------------------

    def logits(self, start: int, stop: int) -> torch.Tensor:
        """The logits at some positions: those of a step, or the model's end again. [position, d_vocab]"""
        self._require_same_weights()
        node = self._nodes(start, stop)[0] if stop - start == 1 else None
        known = self.tree.details.logits(node) if node is not None else None
        if known is not None:
            return known[None].clone()
        n_layers = int(self.tree.model.cfg.n_layers)
        pieces = []
        for a, b in self._pieces(start, stop):
            part = Part(n_layers, n_layers, self.stream(n_layers, a, b)[None]) if self.tree.cache.by_block else None
            logits = self._run(self.ids(a, b), a, reads=(), part=part).logits[0]
            pieces.append(logits.clone() if logits.is_inference() else logits)
        if node is not None:
            self.tree.details.keep_logits(node, pieces[0][0])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    # -- results per position ------------------------------------------------------------------------------------------------------

    def along(self, analysis: Callable[..., Any], options: dict[str, Any], *, last: int, start: int, stop: int) -> tuple[dict[str, np.ndarray], Any]:
        """What an analysis says of each of some positions: new ones computed window by window, and all kept with their nodes.

        Returns:
            Each of its variables that has a position, position first, and ``completeness`` where it names one; and the newest window's result.
        """
        self._require_same_weights()
        key = (analysis, tuple(sorted(options.items())))
        parts: dict[str, list[np.ndarray]] = {}
        about = None
        for segment, upto in segments_to(self.node):
            first, end = max(start, segment.start), min(stop, upto)
            if first >= end:
                continue
            columns = segment.columns_of(key, end - segment.start)
            for a, b in _gaps(columns.known[first - segment.start : end - segment.start]):
                for low, high in self._pieces(first + a, first + b):
                    window = analysis(SteppedTrace(self, max(0, low - last + 1), high), **options)
                    values, about = _by_position(window, high - low)
                    columns.write(low - segment.start, high - segment.start, values, about)
            for name, rows in columns.values.items():
                parts.setdefault(name, []).append(rows[first - segment.start : end - segment.start])
            about = columns.about
        self.tree.trim(self.node)
        return {name: each[0] if len(each) == 1 else np.concatenate(each) for name, each in parts.items()}, about


def _gaps(known: np.ndarray) -> Iterator[tuple[int, int]]:
    """The stretches of False, as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], known, [True]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def _by_position(result: xr.Dataset, n: int) -> tuple[dict[str, np.ndarray], xr.Dataset]:
    """The last ``n`` positions of a result, position first; and one position of it, which says how the rows are to be read."""
    rows = {}
    for name, values in result.variables.items():
        if name in result.data_vars and "position" in values.dims:
            rows[str(name)] = np.moveaxis(values.values, values.dims.index("position"), 0)[-n:]
    if "completeness" in result.attrs:
        rows["completeness"] = np.full(n, result.attrs["completeness"])
    return rows, result.isel(position=slice(-1, None))


class Activations(dict[str, torch.Tensor]):
    """The activations of a path by name, each read whole when it is first asked for. A dictionary in every respect."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        super().__init__(path.names())  # type: ignore[arg-type]
        self._path, self._start, self._stop = path, start, stop

    def __getitem__(self, name: str) -> torch.Tensor:
        value = super().__getitem__(name)
        if value is None:
            value = self._path.activation(name, self._start, self._stop)
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


class SteppedTrace(Trace):
    """Positions ``start`` to ``stop - 1`` of a path as a ``Trace``. Whatever is asked for is read, or made, when it is asked for."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        values = {"model": path.tree.model, "interventions": path.tree.interventions, "embeddings": None, "weights": path.weights}
        for name, value in {**values, "_path": path, "_start": start, "_stop": stop}.items():
            object.__setattr__(self, name, value)  # as the frozen dataclass itself does

    _path: Path
    _start: int
    _stop: int

    def __len__(self) -> int:
        return self._stop - self._start

    @cached_property
    def tokens(self) -> torch.Tensor:
        return torch.tensor(self._path.ids(self._start, self._stop))

    @cached_property
    def token_texts(self) -> list[str]:
        return token_texts(self.model.tokenizer, self._path.ids(self._start, self._stop))

    @cached_property
    def cache(self) -> Any:
        from transformer_lens import ActivationCache

        return ActivationCache(Activations(self._path, self._start, self._stop), self.model, has_batch_dim=False)

    @cached_property
    def logits(self) -> torch.Tensor:
        return self._path.logits(self._start, self._stop)

    def __contains__(self, name: str) -> bool:
        return name in self._path.names()

    @property
    def n_sources(self) -> int:
        return self._stop

    @property
    def d_vocab(self) -> int:
        return self._ends.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self._ends.dtype

    @cached_property
    def _ends(self) -> torch.Tensor:
        return self.logits_at(len(self) - 1, len(self))

    def logits_at(self, start: int, stop: int) -> torch.Tensor:
        if "logits" in self.__dict__:
            return self.logits[start:stop]
        return self._path.logits(self._start + start, self._start + stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        self._require(name)
        stop = len(self) if stop is None else stop
        return self._path.activation(name, self._start + start, self._start + stop)

    def along(self, analysis: Callable[..., Any], options: dict[str, Any], *, last: int) -> tuple[dict[str, np.ndarray], xr.Dataset] | None:
        if self._start > 0:
            return None
        return self._path.along(analysis, options, last=last, start=0, stop=self._stop)
