"""The keys and values of the path that a ``TokenTree`` is on, and the runs that need them.

They are held once: those of the path in use in the working cache, those of other branches parked with their segments. Going to another branch parks
what is left and takes back what is entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from lensplorer.kvcache import WorkingCache
from lensplorer.models import LensModel, model_info
from lensplorer.nodes import Node, Segment, segments_to
from lensplorer.replay import Part
from lensplorer.running import Intervention, Run, run_model
from lensplorer.segments import Parked, Stretch, stream_names
from lensplorer.weights import Weights, weights_of

_SCORE_BYTES = 2**26  # of one block's attention scores at a time
_LONGEST_PIECE = 256  # positions; the products gain nothing from more


def piece_length(model: LensModel, n_sources: int) -> int:
    """How many positions run at a time where they read so many: a few hundred, fewer where their attention would take much memory."""
    row = int(model.cfg.n_heads) * max(1, n_sources) * int(model.cfg.dtype.itemsize)
    return max(1, min(_LONGEST_PIECE, _SCORE_BYTES // row))


class PathCache:
    """The working cache and what path it holds.

    Args:
        model: as ``TokenTree``.
        reads: the hook names that a run over one token records.
        interventions: changes under which everything is run.

    Attributes:
        head_first: whether some activations have the head before the position (see ``segments.position_axis``).
        stream: names of the residual stream entering each block, and of the final one.
        every: what a run over one token records: what is read, and the stream.
        n_runs: how often the model has run.
        weights: those of the model that all of it was run with.
    """

    def __init__(self, model: LensModel, reads: frozenset[str], interventions: tuple[Intervention, ...]) -> None:
        self.model, self.interventions = model, interventions
        self.stream = stream_names(model)
        self.head_first = model_info(model).backend == "bridge"
        self.n_runs = 0
        self.every = reads.union(self.stream)
        self.weights = weights_of(model)
        self._working = WorkingCache(model)
        self._path: list[tuple[Segment, int]] = []  # what the working cache holds: segments, and the depth reached in each

    @property
    def n_bytes(self) -> int:
        return self._working.n_bytes

    # -- runs ----------------------------------------------------------------------------------------------------------------------

    def extend(self, start: int, ids: Sequence[int], *, every: bool = False) -> Run:
        """Run the model over ``ids`` after the path in use: with every activation and the logits, or for the residual stream alone.

        ``entered`` says to what nodes it led; until then the cache has rows that belong to no node, and the next ``load`` forgets them.
        """
        part = None if every else Part(0, int(self.model.cfg.n_layers), None)
        reads = self.every if every else self.stream
        tokens = torch.tensor([list(ids)])
        past = self._working.past
        run = run_model(self.model, tokens, reads=reads, interventions=self.interventions, past=past, start=start, part=part, weights=self.weights)
        self.n_runs += 1
        if self._working.length != start + len(ids):
            raise RuntimeError("The model ran without using its key-value cache.")
        return run

    def entered(self, node: Node) -> None:
        """The last run led to ``node``."""
        self._path = segments_to(node)

    def again(self, node: Node, ids: Sequence[int], start: int, *, reads: Any, part: Part | None) -> Run:
        """The model again over positions of the path to ``node``, whose keys and values are held: they are read, and stay as they are."""
        self.load(node, exactly=False)
        tokens = torch.tensor([list(ids)])
        past = self._working.frozen(start)
        return run_model(self.model, tokens, reads=reads, interventions=self.interventions, past=past, start=start, part=part, weights=self.weights)

    @cached_property
    def by_block(self) -> bool:
        """Whether one block alone does what it does in a whole run: so under the interventions of this package, which keep to their block."""
        return all(type(each).__module__.startswith("lensplorer.interventions.") for each in self.interventions)

    @cached_property
    def before_blocks(self) -> frozenset[str]:
        """The activations recorded before the first block."""
        run = run_model(self.model, torch.zeros(1, 1, dtype=torch.long), reads=self.every, part=Part(0, 0, None))
        return frozenset(run.activations)

    def keys_values(self, node: Node, layer: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one block at the first ``stop`` positions, as views. Two of [1, head, position, d_head]"""
        self.load(node, exactly=False)
        return self._working.layers[layer].rows(0, stop)

    # -- moving --------------------------------------------------------------------------------------------------------------------

    def reserve(self, length: int) -> None:
        """Make room for a path of so many tokens at the next run."""
        self._working.reserve(length)

    def ensure(self, node: Node) -> None:
        """Run again what was dropped of the path to ``node``."""
        if any(segment.stretch is None for segment, _ in segments_to(node)):
            self.load(node)

    def cut(self, segment: Segment, length: int) -> None:
        """The nodes of ``segment`` from depth ``length`` on are gone."""
        self._path = [(s, min(upto, length) if s is segment else upto) for s, upto in self._path]

    def follow(self, weights: Weights) -> None:
        """The model has other weights: nothing held is of them."""
        self.weights, self._working, self._path = weights, WorkingCache(self.model), []

    def forget(self, doomed: set[Segment]) -> None:
        """These segments are gone."""
        at = next((i for i, (segment, _) in enumerate(self._path) if segment in doomed), len(self._path))
        self._path = self._path[:at]

    def load(self, node: Node, *, exactly: bool = True) -> None:
        """Make the working cache hold the path to ``node``, and if ``exactly`` nothing after it.

        What it has in common with the path before stays; the rest of that is parked, and what this one has parked is taken back. What was dropped
        runs again.
        """
        path = segments_to(node)
        common = 0
        for (segment, upto), (old, old_upto) in zip(path, self._path):
            if segment is not old:
                break
            common = min(upto, old_upto)
            if upto != old_upto:
                break
        common = min([common, *(segment.start for segment, _ in path if segment.stretch is None)])
        if common == len(node) and not (exactly and self._working.length > common):
            return
        for segment, upto in self._path:
            self._park(segment, max(segment.start, common), upto)
        self._working.truncate(common)
        self._path = [(segment, min(upto, common)) for segment, upto in path if segment.start < common]
        ids = node.tree.path(node)
        for segment, upto in path:
            start = max(segment.start, common)
            if segment.stretch is None:
                self._run_again(segment, ids[segment.start : upto])
                self._park(segment, upto, self._working.length)
                self._working.truncate(upto)
            elif start < upto:
                self._take_back(segment, start, ids[start:upto])
            self._path = [*(each for each in self._path if each[0] is not segment), (segment, upto)]

    def _park(self, segment: Segment, start: int, stop: int) -> None:
        """Copy keys and values of a segment's positions out of the working cache."""
        if start < stop and segment.stretch is not None:
            segment.parked.append(Parked(start, stop, self._working.take(start, stop)))

    def _run_again(self, segment: Segment, ids: Sequence[int]) -> None:
        """Run all of a segment that was dropped; at least ``ids``, which may have been taken off the tree."""
        own = [node.token_id or 0 for node in segment.nodes]
        ids = own if len(own) >= len(ids) else ids
        stretch = Stretch(self.model, max(segment.capacity, len(ids)))
        step = piece_length(self.model, segment.start + len(ids))
        for at in range(0, len(ids), step):
            run = self.extend(segment.start + at, ids[at : at + step])
            stretch.write(at, self.stream_of(run))
        segment.stretch = stretch

    def _take_back(self, segment: Segment, start: int, ids: Sequence[int]) -> None:
        """The parked keys and values of a segment's positions into the working cache; where there are none, by a run over their tokens."""
        stop = start + len(ids)
        at = start
        while at < stop:
            found = next((each for each in segment.parked if each.start <= at < each.stop), None)
            if found is None:
                piece = ids[at - start :][: piece_length(self.model, stop)]
                self.extend(at, piece)
                at += len(piece)
            else:
                upto = min(found.stop, stop)
                self._working.put(found.values, at - found.start, upto - found.start)
                at = upto
        segment.parked = [part for each in segment.parked for part in each.without(start, stop)]

    def stream_of(self, run: Run) -> list[torch.Tensor]:
        """The residual stream of a run, as a stretch takes it. n_layers + 1 of [position, d_model]"""
        return [run.activations[name][0] for name in self.stream]
