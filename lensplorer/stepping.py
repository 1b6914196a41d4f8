"""Stepping at constant cost: a prefix tree of tokens that shares keys, values and the residual stream.

In a causal model nothing before a new token changes, so appending one costs one token whatever the length, and going back costs nothing.
``TokenTree`` runs the model over new tokens alone, a long text in pieces; popping and jumping choose another node; two continuations of a node
share all that precedes them; editing a token in the middle keeps what precedes it. ``trace`` gives the ``Trace`` that one run over the whole path
would give, equal to rounding.

Memory grows with the length, not with its square. Kept of each token are the residual stream entering each block, keys and values
(``bytes_per_token``: 0.12 MB for 30 layers of width 576 in float32); the rest is made again where somebody looks (see ``paths``). Beside it, within a
bound: every activation of the positions looked at last, and the results kept per position. While a piece runs, its activations exist too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.errors import PromptError
from lensplorer.kvcache import KeysValues, WorkingCache, keys_values_bytes
from lensplorer.locks import model_lock
from lensplorer.memory import free_bytes, readable
from lensplorer.models import LensModel, model_info
from lensplorer.nodes import Node, Segment, has_room, segments_to
from lensplorer.paths import LOGITS, Path, SteppedTrace, piece_length
from lensplorer.replay import Part
from lensplorer.segments import Parked, Stretch, new_positions, stream_bytes, stream_names
from lensplorer.trace import Intervention, Reads, Run, Trace, hook_points, resolve_reads, run_model

if TYPE_CHECKING:
    import xarray as xr

_FIRST_ROOM, _MOST_ROOM = 8, 64  # positions allocated when a branch starts, and at most at a time
_DETAIL_BYTES = 2**26  # of the positions looked at last, at most
_DETAIL_SHARE = 8  # and at most this part of all that is kept
_SCRATCH = 12  # a piece in the making takes about so many times its attention scores and its widest rows


class TokenTree:
    """Everything a model has been made to say, sharing what is common.

    >>> import lensplorer as lp
    >>> from lensplorer.stepping import TokenTree
    >>> tree = TokenTree(lp.load_model("storyworld"))
    >>> once = tree.extend(tree.root, [20, 21, 22])
    >>> a, b = tree.extend(once, [30]), tree.extend(once, [31])
    >>> tree.path(b), b.parent is once
    ([20, 21, 22, 31], True)
    >>> len(tree.trace(a))
    4

    Args:
        model: from ``load_model``.
        reads: as ``run_trace``.
        interventions: changes under which all of the tree is run; another set of them is another tree, since keys and values differ.
        max_bytes: the most to keep; None: half of the memory that is free now. The branches untouched for longest are dropped first, and run
            again when they are visited; tokens are never forgotten. The path in use is never dropped: extending it beyond the bound, or beyond what
            is free, is refused before anything runs.

    Attributes:
        root: the empty path.
        n_runs: how often the model has run.
        reached: the activations that a run reaches, of those read; None before the first look.
    """

    def __init__(self, model: LensModel, *, reads: Reads = None, interventions: Iterable[Intervention] = (), max_bytes: int | None = None) -> None:
        self.model = model
        self.reads = resolve_reads(model, reads)
        self.interventions = tuple(interventions)
        self.max_bytes = free_bytes(model.cfg.device) // 2 if max_bytes is None else max_bytes
        self.root = Node(self, None, None, None)
        self.n_runs = 0
        self.stream = stream_names(model)
        self.head_first = model_info(model).backend == "bridge"
        self.reached: dict[str, None] | None = None
        self.same_as_stream: dict[str, int] = {}
        self._info = model_info(model)
        self._segments: list[Segment] = []
        self._working = WorkingCache(model)
        self._working_path: list[tuple[Segment, int]] = []  # what the working cache holds: segments, and the depth reached in each
        self._details: OrderedDict[Node, int] = OrderedDict()  # bytes of each, the last looked at last
        self._clock = 0

    def __repr__(self) -> str:
        tokens = sum(len(segment.nodes) for segment in self._segments)
        return f"TokenTree({self._info.name!r}, {tokens} tokens, {self.n_bytes / 2**20:.0f} MiB of {self.max_bytes / 2**20:.0f})"

    # -- moving --------------------------------------------------------------------------------------------------------------------

    def extend(self, node: Node, token_ids: int | Sequence[int]) -> Node:
        """The node reached from ``node`` by one token or several; the model runs over those that are not there yet, in pieces of a few hundred.

        Raises:
            PromptError: an id is outside the vocabulary, or the path would be longer than the context, than ``max_bytes`` can hold or than the
                memory that is free. Nothing has run then.

        After any other error or interrupt the tree holds what it held, and the pieces that were done.

        Cost: one forward pass over the new tokens; nothing if they are there.
        """
        ids = [int(token_ids)] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        with model_lock(self.model):
            known = 0
            while known < len(ids) and ids[known] in node.children:
                node = node.children[ids[known]]
                known += 1
            if known < len(ids):
                self._check(node, ids[known:])
                node = self._append(node, ids[known:])
            self._touch(node)
            self.trim(node)
            return node

    def path(self, node: Node) -> list[int]:
        """The token ids from the first to ``node``."""
        ids: list[int] = []
        step: Node | None = node
        while step is not None and step.token_id is not None:
            ids.append(step.token_id)
            step = step.parent
        return ids[::-1]

    def nodes(self, node: Node) -> list[Node]:
        """The nodes from the first token to ``node``."""
        found: list[Node] = []
        step: Node | None = node
        while step is not None and step.parent is not None:
            found.append(step)
            step = step.parent
        return found[::-1]

    def ancestor(self, node: Node, length: int) -> Node:
        """The node ``length`` tokens from the root on the path to ``node``: pop with ``len(node) - 1``, cut with any other. O(distance)."""
        if not 0 <= length <= len(node):
            raise PromptError(f"A path of {len(node)} tokens has no prefix of {length}: expected 0 to {len(node)}.")
        while len(node) > length and node.parent is not None:
            node = node.parent
        return node

    # -- looking -------------------------------------------------------------------------------------------------------------------

    def trace(self, node: Node) -> Trace:
        """What a run over the whole path to ``node`` would give; each activation is read, or made again, when it is first used.

        Raises:
            PromptError: the node is the root, of which there is nothing to see.

        Cost: none, until something is asked of it. The residual stream costs nothing; an activation of a block costs that block over the path,
        logits their product with the unembedding. ``read`` and ``at`` take some positions alone.
        """
        return self._trace(node, 0)

    def window(self, node: Node, *, last: int = 1) -> Trace:
        """The last positions of ``trace(node)`` alone, at a cost that does not grow with the path.

        Position 0 of it is position ``len(node) - last`` of the path. Attention keeps its sources, [head, last, source], all else has ``last``
        positions.

        Raises:
            PromptError: the path is shorter than ``last``, or ``last`` is below 1.
        """
        if not 1 <= last <= len(node):
            raise PromptError(f"A path of {len(node)} tokens has no window of {last}: expected 1 to {len(node)}.")
        return self._trace(node, len(node) - last)

    def _trace(self, node: Node, start: int) -> Trace:
        return SteppedTrace(self._path(node), start, len(node))

    def along(
        self, node: Node, analysis: Callable[..., xr.Dataset], *, last: int | None = None, first: int = 0, **options: Any
    ) -> dict[str, np.ndarray]:
        """What an analysis says of each position of the path, computed for those not seen before alone and kept with their nodes.

        It must say of a position nothing that depends on a later one, nor on activations before the ``last`` positions up to it: token scores
        (last=2) and the logit lens (last=1) do, and say so themselves.

        Returns:
            Each variable that has a position, [position - first, ...], and ``completeness`` where the analysis names one.

        Cost: the analysis of the new positions.
        """
        needs = getattr(analysis, "along", 0) or 1 if last is None else last
        function = getattr(analysis, "__wrapped__", analysis)
        return self._path(node).along(function, options, last=needs, start=first, stop=len(node))[0]

    def logits(self, node: Node) -> torch.Tensor:
        """The logits that predict what follows ``node``. [d_vocab]"""
        return self._path(node).logits(len(node) - 1, len(node))[0]

    def _path(self, node: Node) -> Path:
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        if node.parent is None:
            raise PromptError("The path is empty: extend it by at least one token.")
        with model_lock(self.model):
            self.ensure(node)
            self._touch(node)
            self.trim(node)
        return Path(self, node)

    # -- memory --------------------------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """What the tree holds now: all branches with their results, the keys and values of the path in use, and the positions looked at last."""
        return self._working.n_bytes + sum(segment.n_bytes for segment in self._segments) + sum(self._details.values())

    def forget(self, node: Node) -> None:
        """Remove a node and all that follows it from the tree."""
        if node.parent is None:
            doomed = set(self._segments)
            self.root.children.clear()
        else:
            node.parent.children.pop(node.token_id if node.token_id is not None else -1, None)
            below = [node]
            doomed = set()
            while below:
                step = below.pop()
                below.extend(step.children.values())
                self._forget_details(step)
                if step.segment is not None and step.segment.start + 1 == len(step):
                    doomed.add(step.segment)
            segment = node.segment
            if segment is not None and segment not in doomed:  # the segment begins before the node: keep its beginning
                kept = len(node) - 1
                del segment.nodes[kept - segment.start :]
                segment.capacity = len(segment.nodes)  # rows are never written over: a trace may hold them
                segment.parked = [each for each in segment.parked if each.start < kept]
                self._working_path = [(s, min(upto, kept) if s is segment else upto) for s, upto in self._working_path]
        self._segments = [segment for segment in self._segments if segment not in doomed]
        cut = next((i for i, (segment, _) in enumerate(self._working_path) if segment in doomed), None)
        if cut is not None:
            self._working_path = self._working_path[:cut]

    def _touch(self, node: Node) -> None:
        self._clock += 1
        for segment, _ in segments_to(node):
            segment.touched = self._clock

    def trim(self, node: Node) -> None:
        """Drop the longest untouched segments until the bound holds, never those on the way to ``node``."""
        excess = self.n_bytes - self.max_bytes
        if excess <= 0:
            return
        in_use = {segment for segment, _ in segments_to(node)}
        others = [segment for segment in self._segments if segment not in in_use and segment.n_bytes]
        for segment in sorted(others, key=lambda s: (s.touched, -s.start)):
            if excess <= 0:
                return
            excess -= segment.n_bytes
            segment.drop()

    # -- details of single positions -----------------------------------------------------------------------------------------------

    def keep_details(self, node: Node, run: Run, at: int) -> None:
        """Keep every activation of a run over one position with its node, and let go those looked at longest ago."""
        node.details = {name: _own(new_positions(name, value[0], 1, at + 1, head_first=self.head_first)) for name, value in run.activations.items()}
        if self.reached is None:
            self._learn(node.details)
        if run.logits.numel():
            node.details[LOGITS] = run.logits[0]
        held = {value.data_ptr(): value.nbytes for value in node.details.values()}
        self._details[node] = sum(held.values())
        bound = min(_DETAIL_BYTES, self.max_bytes // _DETAIL_SHARE)
        total = sum(self._details.values())
        while total > bound and len(self._details) > 1:
            oldest, n_bytes = self._details.popitem(last=False)
            oldest.details = None
            total -= n_bytes

    def touch_details(self, node: Node) -> None:
        if node in self._details:
            self._details.move_to_end(node)

    def _forget_details(self, node: Node) -> None:
        if self._details.pop(node, None) is not None:
            node.details = None

    def _learn(self, details: dict[str, torch.Tensor]) -> None:
        """From the first position looked at: which activations there are, and which of them are the residual stream under another name."""
        self.reached = dict.fromkeys(name for name in details if name in self.reads)
        points = hook_points(self.model)
        edited = {id(points[name]) for each in self.interventions for name, _ in each.hooks(self.model, range(self._info.n_ctx))}
        rows = {id(points[name]): row for row, name in enumerate(self.stream)}
        for row, name in enumerate(self.stream[1:-1], start=1):
            before = f"blocks.{row - 1}.hook_resid_post"
            one, other = details.get(before), details.get(name)
            if id(points[name]) not in edited and one is not None and other is not None and torch.equal(one, other):
                rows.setdefault(id(points[before]), row)
        self.same_as_stream = {name: rows[id(points[name])] for name in self.reached if id(points[name]) in rows}

    # -- running -------------------------------------------------------------------------------------------------------------------

    def _check(self, node: Node, ids: Sequence[int]) -> None:
        d_vocab = int(self.model.cfg.d_vocab)
        for token_id in ids:
            if not 0 <= token_id < d_vocab:
                raise PromptError(f"Token id {token_id} is outside the vocabulary: expected 0 to {d_vocab - 1}.")
        if len(node) + len(ids) > self._info.n_ctx:
            raise PromptError(
                f"{len(node)} tokens and {len(ids)} more are {len(node) + len(ids)}, and the context of {self._info.name!r} is {self._info.n_ctx}."
                " Remove some first."
            )

    @cached_property
    def by_block(self) -> bool:
        """Whether one block alone does what it does in a whole run: so for the interventions of this package, which keep to their block."""
        return all(type(each).__module__.startswith("lensplorer.interventions.") for each in self.interventions)

    @cached_property
    def _before(self) -> frozenset[str]:
        run = run_model(self.model, torch.zeros(1, 1, dtype=torch.long), reads=self.reads, part=Part(0, 0, None))
        return frozenset(run.activations)

    def before_blocks(self) -> frozenset[str]:
        """The activations read before the first block."""
        return self._before

    def _run(self, start: int, ids: Sequence[int], *, every: bool) -> Run:
        """Run the model over ``ids`` after the path in use: every activation and the logits, or the residual stream alone."""
        reads = self.reads.union(self.stream) if every else self.stream
        part = None if every else Part(0, int(self.model.cfg.n_layers), None)
        run = run_model(
            self.model, torch.tensor([list(ids)]), reads=reads, interventions=self.interventions, past=self._working.past, start=start, part=part
        )
        self.n_runs += 1
        if self._working.length != start + len(ids):
            raise RuntimeError("The model ran without using its key-value cache.")
        return run

    def _append(self, node: Node, ids: Sequence[int]) -> Node:
        """Nodes for ``ids`` after ``node``, piece by piece. A piece is reachable once it is whole."""
        segment = self._segment_for(node, len(ids))
        self._load(node)
        if len(ids) > 1:
            self._working.reserve(len(node) + len(ids))
        every = len(ids) == 1
        done = 0
        while done < len(ids):
            piece = ids[done : done + piece_length(self.model, len(node) + len(ids))]
            node = self._piece(segment, node, piece, every=every)
            done += len(piece)
        return node

    def _piece(self, segment: Segment, node: Node, ids: Sequence[int], *, every: bool) -> Node:
        """One run, and its nodes. Nothing is reachable before the last line, so an interrupt anywhere leaves the tree as it was."""
        run = self._run(len(node), ids, every=every)
        if segment.stretch is None:  # _segment_for gives one with a stretch
            raise RuntimeError("A segment in use lost its residual stream.")
        segment.stretch.write(len(node) - segment.start, [run.activations[name][0] for name in self.stream])
        made: list[Node] = []
        for token_id in ids:
            made.append(Node(self, made[-1] if made else node, token_id, segment))
        if every:
            self.keep_details(made[0], run, len(node))
        for parent, child in pairwise(made):
            parent.children[child.token_id or 0] = child
        if not segment.nodes:
            self._segments.append(segment)
        segment.nodes += made
        self._working_path = segments_to(made[-1])
        node.children[ids[0]] = made[0]
        return made[-1]

    def _segment_for(self, node: Node, n_new: int) -> Segment:
        """The segment that ends in ``node`` if it has room, else a new one."""
        last = node.segment
        if last is not None and last.stretch is not None and has_room(node, n_new):
            return last
        room = self._room(node, n_new)
        self._refuse_excess(node, n_new)
        if self._path_bytes(node, room) > self.max_bytes:
            room = n_new
        return Segment(node, Stretch(self.model, room), room)

    def _room(self, node: Node, n_new: int) -> int:
        """Positions to allocate for a new segment: twice as many as last time while a branch grows, few where it starts."""
        last = node.segment
        continues = last is not None and last.nodes[-1] is node
        room = min(2 * len(last.nodes), _MOST_ROOM) if last is not None and continues else 0
        return min(max(_FIRST_ROOM, room, n_new), self._info.n_ctx - len(node)) if n_new < _MOST_ROOM else n_new

    def _refuse_excess(self, node: Node, n_new: int) -> None:
        """
        Raises:
            PromptError: the path to ``node`` and ``n_new`` more are more than ``max_bytes``, or more than is free.
        """
        n = len(node) + n_new
        needed = self._path_bytes(node, n_new)
        if needed > self.max_bytes:
            raise PromptError(
                f"{n:,} tokens take {readable(needed)} of memory, and max_bytes is {readable(self.max_bytes)}. Shorten the text, or raise max_bytes."
            )
        new = n_new * bytes_per_token(self.model) + scratch_bytes(self.model, min(n_new, piece_length(self.model, n)), n)
        free = free_bytes(self.model.cfg.device)
        if new > free:
            raise PromptError(
                f"{n_new:,} more tokens take {readable(new)} of memory, and {readable(free)} are free. Shorten the text, or free memory first."
            )

    def _path_bytes(self, node: Node, n_new: int) -> int:
        """What the path to ``node`` and ``n_new`` more take, in a new segment if they do not fit the last."""
        new_bytes = 0 if has_room(node, n_new) else n_new * stream_bytes(self.model)
        working = max(self._working.n_bytes, (len(node) + n_new) * keys_values_bytes(self.model))
        return sum(segment.n_bytes for segment, _ in segments_to(node)) + new_bytes + working

    # -- keys and values -------------------------------------------------------------------------------------------------------------

    def frozen(self, node: Node, length: int) -> Any:
        """The key-value cache of the path to ``node`` at its first ``length`` positions, for a run again over those that follow."""
        self._load(node, exactly=False)
        return self._working.frozen(length)

    def keys_values(self, node: Node, layer: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one block at the first ``stop`` positions, as views. Two of [1, head, position, d_head]"""
        self._load(node, exactly=False)
        return self._working.layers[layer].rows(0, stop)

    def ensure(self, node: Node) -> None:
        """Run again what was dropped of the path to ``node``."""
        if any(segment.stretch is None for segment, _ in segments_to(node)):
            self._load(node)

    def _load(self, node: Node, *, exactly: bool = True) -> None:
        """Make the working cache hold the path to ``node``, and if ``exactly`` nothing after it.

        What it has in common with the path before stays; the rest of that is parked, and what this one has parked is taken back. What was dropped
        runs again.
        """
        path = segments_to(node)
        common = 0
        for (segment, upto), (old, old_upto) in zip(path, self._working_path):
            if segment is not old:
                break
            common = min(upto, old_upto)
            if upto != old_upto:
                break
        dropped = any(segment.stretch is None for segment, _ in path)
        if common == len(node) and not dropped and not (exactly and self._working.length > common):
            return
        common = min([common, *(segment.start for segment, _ in path if segment.stretch is None)])
        for segment, upto in self._working_path:
            self._park(segment, max(segment.start, common), upto)
        self._working.truncate(common)
        self._working_path = [(segment, min(upto, common)) for segment, upto in path if segment.start < common]
        ids = self.path(node)
        for segment, upto in path:
            start = max(segment.start, common)
            if segment.stretch is None:
                self._run_again(segment, ids[segment.start : upto])
                self._park(segment, upto, self._working.length)
                self._working.truncate(upto)
            elif start < upto:
                self._take_back(segment, start, ids[start:upto])
            self._working_path = [*(each for each in self._working_path if each[0] is not segment), (segment, upto)]

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
            run = self._run(segment.start + at, ids[at : at + step], every=False)
            stretch.write(at, [run.activations[name][0] for name in self.stream])
        segment.stretch = stretch

    def _take_back(self, segment: Segment, start: int, ids: Sequence[int]) -> None:
        """The parked keys and values of a segment's positions into the working cache; where there are none, by a run over their tokens."""
        stop = start + len(ids)
        at = start
        while at < stop:
            found = next((each for each in segment.parked if each.start <= at < each.stop), None)
            if found is None:
                piece = ids[at - start :][: piece_length(self.model, stop)]
                self._run(at, piece, every=False)
                at += len(piece)
            else:
                upto = min(found.stop, stop)
                self._working.put(found.values, at - found.start, upto - found.start)
                at = upto
        segment.parked = [part for each in segment.parked for part in _outside(each, start, stop)]


def _outside(parked: Parked, start: int, stop: int) -> list[Parked]:
    """What is left of parked positions without ``start`` to ``stop - 1``."""
    if parked.stop <= start or stop <= parked.start:
        return [parked]
    parts = [(parked.start, start), (stop, parked.stop)]
    return [Parked(a, b, _rows(parked.values, a - parked.start, b - parked.start)) for a, b in parts if a < b]


def _rows(values: KeysValues, start: int, stop: int) -> KeysValues:
    return [(keys[:, :, start:stop].clone(), own[:, :, start:stop].clone()) for keys, own in values]


def _own(value: torch.Tensor) -> torch.Tensor:
    """The value, or a copy where it is a part of something larger, which would be kept with it."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def bytes_per_token(model: LensModel) -> int:
    """Bytes that a ``TokenTree`` keeps for each token: the residual stream, keys and values. It does not grow with the length.

    >>> import lensplorer as lp
    >>> bytes_per_token(lp.load_model("storyworld")) < 10_000
    True
    """
    return stream_bytes(model) + keys_values_bytes(model)


def scratch_bytes(model: LensModel, n_new: int, n_sources: int) -> int:
    """About how much a run over ``n_new`` positions takes beside what is kept, and lets go again."""
    cfg = model.cfg
    scores = int(cfg.n_heads) * n_sources
    widest = max(int(getattr(cfg, "d_mlp", 0) or 0), int(cfg.d_model), int(cfg.d_vocab) // 4)
    return _SCRATCH * n_new * (scores + widest) * int(cfg.dtype.itemsize)
