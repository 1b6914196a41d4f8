"""Stepping at constant cost: a prefix tree of tokens that shares keys, values and activations.

In a causal model nothing before a new token changes, so appending one costs one token whatever the length, and going back costs nothing.
``TokenTree`` keeps for each token it has run the model's keys and values, the activations asked for and the logits. Appending runs the model
over the new tokens alone; popping and jumping choose another node; two continuations of a node share all that precedes them; editing a
token in the middle keeps what precedes it. ``trace`` gives the ``Trace`` that one run over the whole path would give.

Memory is ``bytes_per_token(model, reads=...)``, with ``max_bytes`` the most that a tree keeps. For 12 layers of width 768 and a vocabulary of
50,257 with every activation that is 0.88 MB a token, and attention adds 576 bytes for each source: 0.95 MB a token for 128 tokens run at once,
1.45 MB for 1,000. With only the residual stream read it is 0.31 MB a token, most of it logits. The path in use has its keys and values twice
(0.07 MB a token, counted), and room for the tokens to come is counted as it is allocated.

Not counted: while a chunk runs, its activations exist twice; and a trace of a path that was run in several pieces has a copy of each
activation used, for as long as the trace lives. The tree holds no traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from lensplorer.errors import PromptError
from lensplorer.kvcache import WorkingCache
from lensplorer.locks import model_lock
from lensplorer.models import LensModel, model_info
from lensplorer.nodes import Node, Results, Segment, has_room, segments_to
from lensplorer.segments import LOGITS, Layout, PathActivations, Pieces, SteppedTrace, Stretch, is_attention, new_positions
from lensplorer.tokens import token_texts
from lensplorer.trace import Intervention, Reads, Run, Trace, resolve_reads, run_model

if TYPE_CHECKING:
    import xarray as xr

_MOST_WINDOWS = 32  # new positions that are looked at one by one
_FIRST_ROOM, _MOST_ROOM = 8, 64  # positions allocated when a branch starts, and at most at a time


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
        max_bytes: the most to keep. The branches untouched for longest are dropped first, and run again when they are visited; tokens are
            never forgotten. The path in use is never dropped: extending it beyond the bound is refused.

    Attributes:
        root: the empty path.
        n_runs: how often the model has run.
    """

    def __init__(self, model: LensModel, *, reads: Reads = None, interventions: Iterable[Intervention] = (), max_bytes: int = 2 * 2**30) -> None:
        self.model = model
        self.reads = resolve_reads(model, reads)
        self.interventions = tuple(interventions)
        self.max_bytes = max_bytes
        self.root = Node(self, None, None, None)
        self.n_runs = 0
        self._info = model_info(model)
        self._head_first = self._info.backend == "bridge"
        self._segments: list[Segment] = []
        self._working = WorkingCache(model)
        self._working_path: list[tuple[Segment, int]] = []  # what the working cache holds: segments, and the depth reached in each
        self._layout: Layout | None = None  # of the last run
        self._clock = 0

    def __repr__(self) -> str:
        tokens = sum(len(segment.nodes) for segment in self._segments)
        return f"TokenTree({self._info.name!r}, {tokens} tokens, {self.n_bytes / 2**20:.0f} MiB of {self.max_bytes / 2**20:.0f})"

    # -- moving --------------------------------------------------------------------------------------------------------------------

    def extend(self, node: Node, token_ids: int | Sequence[int]) -> Node:
        """The node reached from ``node`` by one token or several; the model runs over those that are not there yet, all at once.

        Raises:
            PromptError: an id is outside the vocabulary, the path would be longer than the context or than ``max_bytes`` can hold. The tree is
                as it was, and so it is after any error or interrupt during the run.

        Cost: one forward pass over the new tokens; nothing if they are there.
        """
        ids = [int(token_ids)] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        self._check(node, ids)
        with model_lock(self.model):
            known = 0
            while known < len(ids) and ids[known] in node.children:
                node = node.children[ids[known]]
                known += 1
            if known < len(ids):
                self._ensure(node)
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
        """What a run over the whole path to ``node`` would give; each activation is put together when it is first used.

        Raises:
            PromptError: the node is the root, of which there is nothing to see.

        Cost: no run, unless the path was dropped. An activation used costs nothing where the path was run in one piece, else one copy.
        """
        pieces = self._pieces(node)
        return self._trace_of(pieces, self.path(node))

    def window(self, node: Node, *, last: int = 1) -> Trace:
        """The last positions of ``trace(node)`` alone, at a cost that does not grow with the path.

        Position 0 of it is position ``len(node) - last`` of the path. Attention keeps its sources, [head, last, source], all else has ``last``
        positions.

        Raises:
            PromptError: the path is shorter than ``last``, or ``last`` is below 1.
        """
        if not 1 <= last <= len(node):
            raise PromptError(f"A path of {len(node)} tokens has no window of {last}: expected 1 to {len(node)}.")
        start = len(node) - last
        pieces = [(stretch, max(a, start), b) for stretch, a, b in self._pieces(node) if b > start]
        return self._trace_of(pieces, self.path(node)[start:])

    def along(self, node: Node, analysis: Callable[[Trace], xr.Dataset], *, last: int = 1, first: int = 0) -> dict[str, np.ndarray]:
        """What an analysis says of each position of the path, computed for those not seen before alone and kept with their nodes.

        It must say of a position nothing that depends on a later one, nor on activations before the ``last`` positions up to it: token scores
        (last=2) and the logit lens (last=1) do. It is its own key: pass the same function again.

        Returns:
            Each variable that has a position, [position - first, ...], and ``completeness`` where the analysis names one.

        Cost: the analysis of one window for each new position; of the whole path when many are new.
        """
        nodes = self.nodes(node)
        missing = [i for i in range(first, len(nodes)) if analysis not in nodes[i].results]
        if len(missing) > _MOST_WINDOWS:
            whole = analysis(self.trace(node))
            for i in missing:
                nodes[i].results[analysis] = _at(whole, i)
        else:
            for i in missing:
                nodes[i].results[analysis] = _at(analysis(self.window(nodes[i], last=min(last, i + 1))), -1)
        rows = [each.results[analysis] if analysis in each.results else _at(analysis(self.trace(each)), -1) for each in nodes[first:]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def logits(self, node: Node) -> torch.Tensor:
        """The logits that predict what follows ``node``; a view. [d_vocab]"""
        stretch, _, stop = self._pieces(node)[-1]
        return stretch.read(LOGITS, stop - 1, stop)[0]

    # -- memory --------------------------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """What the tree holds now: activations and results of all branches, and the keys and values of the path in use."""
        return self._working.n_bytes + sum(segment.n_bytes for segment in self._segments)

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
                if step.segment is not None and step.segment.start + 1 == len(step):
                    doomed.add(step.segment)
            segment = node.segment
            if segment is not None and segment not in doomed:  # the segment begins before the node: keep its beginning
                del segment.nodes[len(node) - 1 - segment.start :]
                segment.capacity = len(segment.nodes)  # rows are never written over: a trace may hold them
                self._working_path = [(s, min(upto, len(node) - 1) if s is segment else upto) for s, upto in self._working_path]
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
            segment.stretch, segment.result_bytes = None, 0
            for dropped in segment.nodes:
                dropped.results = Results(dropped._results_changed)

    # -- running -------------------------------------------------------------------------------------------------------------------

    def _check(self, node: Node, ids: Sequence[int]) -> None:
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        d_vocab = int(self.model.cfg.d_vocab)
        for token_id in ids:
            if not 0 <= token_id < d_vocab:
                raise PromptError(f"Token id {token_id} is outside the vocabulary: expected 0 to {d_vocab - 1}.")
        if len(node) + len(ids) > self._info.n_ctx:
            raise PromptError(
                f"{len(node)} tokens and {len(ids)} more are {len(node) + len(ids)}, and the context of {self._info.name!r} is {self._info.n_ctx}."
                " Remove some first."
            )

    def _run(self, node: Node, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        """Run the model over ``ids`` after ``node``: every value without batch dimension, position first (attention: [head, query, source])."""
        self._load(node)
        start, stop = len(node), len(node) + len(ids)
        run: Run = run_model(
            self.model, torch.tensor([list(ids)]), reads=self.reads, interventions=self.interventions, past=self._working.past, start=start
        )
        self.n_runs += 1
        values = {}
        for name, value in run.activations.items():
            values[name] = value[0] if is_attention(name) else new_positions(name, value[0], len(ids), stop, head_first=self._head_first)
        values[LOGITS] = run.logits[0]
        for i, layer in enumerate(self._working.layers):
            values[_key_name(i)], values[_value_name(i)] = layer.take_latest()
        return values

    def _append(self, node: Node, ids: Sequence[int]) -> Node:
        """Nodes for ``ids`` after ``node``. Nothing is reachable before the last line, so an interrupt anywhere leaves the tree as it was."""
        if self._layout is not None:
            self._refuse_excess(node, len(ids), self._layout)
        values = self._run(node, ids)
        layout = self._layout if self._layout is not None and self._layout.fits(values) else Layout.of(values)
        segment = self._segment_for(node, len(ids), layout)
        if segment.stretch is None:  # _segment_for gives one with a stretch
            raise RuntimeError("A segment in use lost its activations.")
        segment.stretch.write(len(node) - segment.start, values)
        made: list[Node] = []
        for token_id in ids:
            made.append(Node(self, made[-1] if made else node, token_id, segment))
        for parent, child in pairwise(made):
            parent.children[child.token_id or 0] = child
        self._layout = layout
        if not segment.nodes:
            self._segments.append(segment)
        segment.nodes += made
        self._working_path = segments_to(made[-1])
        node.children[ids[0]] = made[0]
        return made[-1]

    def _segment_for(self, node: Node, n_new: int, layout: Layout) -> Segment:
        """The segment that ends in ``node`` if it has room, else a new one."""
        last = node.segment
        if last is not None and last.stretch is not None and has_room(node, n_new) and last.stretch.layout == layout:
            return last
        room = self._room(node, n_new)
        self._refuse_excess(node, n_new, layout)
        if self._path_bytes(node, room, layout) > self.max_bytes:
            room = n_new
        return Segment(node, Stretch(layout, len(node), room, torch.device(str(self.model.cfg.device))))

    def _room(self, node: Node, n_new: int) -> int:
        """Positions to allocate for a new segment: twice as many as last time while a branch grows, few where it starts."""
        last = node.segment
        continues = last is not None and last.nodes[-1] is node
        room = min(2 * len(last.nodes), _MOST_ROOM) if last is not None and continues else 0
        return min(max(_FIRST_ROOM, room, n_new), self._info.n_ctx - len(node)) if n_new < _MOST_ROOM else n_new

    def _refuse_excess(self, node: Node, n_new: int, layout: Layout) -> None:
        """
        Raises:
            PromptError: the path to ``node`` and ``n_new`` more are more than ``max_bytes``.
        """
        needed = self._path_bytes(node, n_new, layout)
        if needed > self.max_bytes:
            raise PromptError(
                f"{len(node) + n_new} tokens with these activations take {needed / 2**20:,.0f} MiB, and max_bytes is"
                f" {self.max_bytes / 2**20:,.0f} MiB. Read fewer activations, raise max_bytes, or shorten the text."
            )

    def _path_bytes(self, node: Node, n_new: int, layout: Layout) -> int:
        """What the path to ``node`` and ``n_new`` more take, in a new segment if they do not fit the last."""
        new_bytes = 0 if has_room(node, n_new) else layout.n_bytes(len(node), n_new)
        return sum(segment.n_bytes for segment, _ in segments_to(node)) + new_bytes + self._working.n_bytes

    def _load(self, node: Node) -> None:
        """Make the working cache hold the path to ``node``: what it has in common with the path before stays, the rest is copied."""
        path = segments_to(node)
        common = 0
        for (segment, upto), (old, old_upto) in zip(path, self._working_path):
            if segment is not old:
                break
            common = min(upto, old_upto)
            if upto != old_upto:
                break
        self._working_path = [(segment, min(upto, common)) for segment, upto in path if segment.start < common]
        self._working.truncate(common)
        for segment, upto in path:
            start = max(segment.start, common)
            if start < upto and segment.stretch is not None:
                for i, layer in enumerate(self._working.layers):
                    keys, values = segment.stretch.read(_key_name(i), start, upto), segment.stretch.read(_value_name(i), start, upto)
                    layer.append(keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
                    layer.latest = None
        self._working_path = path

    def _ensure(self, node: Node) -> None:
        """Run again what was dropped of the path to ``node``."""
        for segment, _ in segments_to(node):
            if segment.stretch is None:
                values = self._run(segment.parent, [n.token_id or 0 for n in segment.nodes])
                stretch = Stretch(
                    Layout.of(values), segment.start, max(segment.capacity, len(segment.nodes)), torch.device(str(self.model.cfg.device))
                )
                stretch.write(0, values)
                segment.stretch = stretch
                self._working_path = segments_to(segment.nodes[-1])

    def _pieces(self, node: Node) -> Pieces:
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        if node.parent is None:
            raise PromptError("The path is empty: extend it by at least one token.")
        with model_lock(self.model):
            self._ensure(node)
            self._touch(node)
            self.trim(node)
            return [(segment.stretch, segment.start, upto) for segment, upto in segments_to(node) if segment.stretch is not None]

    def _trace_of(self, pieces: Pieces, ids: list[int]) -> Trace:
        from transformer_lens import ActivationCache

        names = dict.fromkeys(name for stretch, _, _ in pieces for name, _ in stretch.layout.same if name in self.reads)
        activations = PathActivations(pieces, list(names), head_first=self._head_first)
        cache = ActivationCache(activations, self.model, has_batch_dim=False)
        texts = token_texts(self.model.tokenizer, ids)
        return SteppedTrace(self.model, torch.tensor(ids), texts, pieces, cache, self.interventions)


def _key_name(layer: int) -> str:
    return f"past.{layer}.keys"


def _value_name(layer: int) -> str:
    return f"past.{layer}.values"


def bytes_per_token(model: LensModel, *, reads: Reads = None, length: int | None = None) -> int:
    """Bytes that a ``TokenTree`` keeps for each of ``length`` tokens run at once, on average.

    Args:
        model, reads: as ``TokenTree``.
        length: how many tokens; None: the whole context. It matters where attention is read, whose rows grow with the position.

    Cost: one run over one token.
    """
    tree = TokenTree(model, reads=reads)
    tree.extend(tree.root, [0])
    if tree._layout is None:
        raise RuntimeError("A run left no layout.")
    return tree._layout.n_bytes(0, n := length if length is not None else tree._info.n_ctx) // n


def _at(result: xr.Dataset, position: int) -> dict[str, np.ndarray]:
    """One position of a result."""
    row = {str(name): values.isel(position=position).values for name, values in result.data_vars.items() if "position" in values.dims}
    return row | ({"completeness": np.asarray(result.attrs["completeness"])} if "completeness" in result.attrs else {})
