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

from collections.abc import Callable, Iterable, Sequence
from inspect import unwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.arguments import expects
from lensplorer.details import Details
from lensplorer.errors import PromptError
from lensplorer.kvcache import keys_values_bytes
from lensplorer.locks import model_lock
from lensplorer.memory import free_bytes, readable
from lensplorer.models import LensModel, model_info
from lensplorer.nodes import Node, Segment, has_room, segments_to
from lensplorer.pathcache import PathCache, piece_length
from lensplorer.paths import Path, SteppedTrace
from lensplorer.running import Intervention, Reads, resolve_reads
from lensplorer.segments import Stretch, stream_bytes
from lensplorer.sizes import run_bytes
from lensplorer.trace import Trace
from lensplorer.weights import weights_of

if TYPE_CHECKING:
    import xarray as xr

_FIRST_ROOM, _MOST_ROOM = 8, 64  # positions allocated when a branch starts, and at most at a time


@expects
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
        cache: keys and values, and the runs that need them.
        details: every activation of the positions looked at last.
    """

    def __init__(self, model: LensModel, *, reads: Reads = None, interventions: Iterable[Intervention] = (), max_bytes: int | None = None) -> None:
        self.model = model
        self.reads = resolve_reads(model, reads)
        self.interventions = tuple(interventions)
        self.max_bytes = free_bytes(model.cfg.device) // 2 if max_bytes is None else max_bytes
        self.root = Node(self, None, None, None)
        self.cache = PathCache(model, self.reads, self.interventions)
        self.details = Details(model, self.reads, self.interventions, self.max_bytes)
        self._info = model_info(model)
        self._segments: list[Segment] = []
        self._clock = 0

    def __repr__(self) -> str:
        tokens = sum(len(segment.nodes) for segment in self._segments)
        return f"TokenTree({self._info.name!r}, {tokens} tokens, {self.n_bytes / 2**20:.0f} MiB of {self.max_bytes / 2**20:.0f})"

    @property
    def n_runs(self) -> int:
        """How often the model has run over new tokens."""
        return self.cache.n_runs

    # -- moving --------------------------------------------------------------------------------------------------------------------

    def extend(self, node: Node, token_ids: int | Sequence[int]) -> Node:
        """The node reached from ``node`` by one token or several; the model runs over those that are not there yet, in pieces of a few hundred.

        Raises:
            PromptError: an id is outside the vocabulary, or the path would be longer than the context, than ``max_bytes`` can hold or than the
                memory that is free. Nothing has run then.
            ModelError: the model's weights were converted or moved since it was loaded.

        After any other error or interrupt the tree holds what it held, and the pieces that were done.

        Cost: one forward pass over the new tokens; nothing if they are there.
        """
        ids = [int(token_ids)] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        self._follow_weights()
        node, new = self._known(node, ids)
        if new:
            self._check(node, new)
            node = self._append(node, new)
        with model_lock(self.model):
            self._touch(node)
            self.trim(node)
        return node

    def holds(self, node: Node) -> bool:
        """Whether nothing of the path to ``node`` was dropped."""
        return all(segment.stretch is not None for segment, _ in segments_to(node))

    def missing(self, ids: Sequence[int]) -> int:
        """How many tokens would run if the path of ``ids`` were asked for now."""
        node, new = self._known(self.root, ids)
        return len(new) + sum(upto - segment.start for segment, upto in segments_to(node) if segment.stretch is None)

    def require_room(self, ids: Sequence[int]) -> None:
        """Refuse a path that would not fit.

        Raises:
            PromptError: as ``extend``.
        """
        node, new = self._known(self.root, ids)
        if new:
            self._check(node, new)
            self._refuse_excess(node, len(new))

    @staticmethod
    def _known(node: Node, ids: Sequence[int]) -> tuple[Node, Sequence[int]]:
        """As far as the path of ``ids`` after ``node`` has been run, and the rest."""
        known = 0
        while known < len(ids) and ids[known] in node.children:
            node = node.children[ids[known]]
            known += 1
        return node, ids[known:]

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
        function = unwrap(analysis)
        return self._path(node).along(function, options, last=needs, start=first, stop=len(node))[0]

    def logits(self, node: Node) -> torch.Tensor:
        """The logits that predict what follows ``node``. [d_vocab]"""
        return self._path(node).logits(len(node) - 1, len(node))[0]

    def _path(self, node: Node) -> Path:
        if node.tree is not self:
            raise PromptError("This node belongs to another tree.")
        if node.parent is None:
            raise PromptError("The path is empty: extend it by at least one token.")
        self._follow_weights()
        with model_lock(self.model):
            self.cache.ensure(node)
            self._touch(node)
            self.trim(node)
        return Path(self, node)

    # -- memory --------------------------------------------------------------------------------------------------------------------

    @property
    def n_bytes(self) -> int:
        """What the tree holds now: all branches with their results, the keys and values of the path in use, and the positions looked at last."""
        return self.cache.n_bytes + sum(segment.n_bytes for segment in self._segments) + self.details.n_bytes

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
                self.details.forget(step)
                if step.segment is not None and step.segment.start + 1 == len(step):
                    doomed.add(step.segment)
            segment = node.segment
            if segment is not None and segment not in doomed:  # the segment begins before the node: keep its beginning
                kept = len(node) - 1
                del segment.nodes[kept - segment.start :]
                segment.capacity = len(segment.nodes)  # rows are never written over: a trace may hold them
                segment.parked = [each for each in segment.parked if each.start < kept]
                self.cache.cut(segment, kept)
        self._segments = [segment for segment in self._segments if segment not in doomed]
        self.cache.forget(doomed)

    def _follow_weights(self) -> None:
        """Let go of what was run with other weights than the model has now. The tokens stay, and run again where somebody looks.

        Raises:
            ModelError: the weights were converted or moved.
        """
        weights = weights_of(self.model)
        if weights is self.cache.weights:
            return
        with model_lock(self.model):
            self.cache.follow(weights)
            self.details.clear()
            for segment in self._segments:
                segment.drop()

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

    def _append(self, node: Node, ids: Sequence[int]) -> Node:
        """Nodes for ``ids`` after ``node``, piece by piece. A piece is reachable once it is whole; between two, others may have the model."""
        with model_lock(self.model):
            segment = self._segment_for(node, len(ids))
            if len(ids) > 1:
                self.cache.reserve(len(node) + len(ids))
        step = piece_length(self.model, len(node) + len(ids))
        for at in range(0, len(ids), step):
            with model_lock(self.model):
                self.cache.load(node)
                node = self._piece(segment, node, ids[at : at + step])
        return node

    def _piece(self, segment: Segment, node: Node, ids: Sequence[int]) -> Node:
        """One run, and its nodes. Nothing is reachable before the last line, so an interrupt anywhere leaves the tree as it was."""
        run = self.cache.extend(len(node), ids, every=len(ids) == 1)
        if segment.stretch is None:
            raise RuntimeError("A segment in use lost its residual stream.")
        segment.stretch.write(len(node) - segment.start, self.cache.stream_of(run))
        made: list[Node] = []
        for token_id in ids:
            made.append(Node(self, made[-1] if made else node, token_id, segment))
        if len(made) == 1:
            self.details.keep(made[0], run)
        for parent, child in pairwise(made):
            parent.children[child.token_id or 0] = child
        if not segment.nodes:
            self._segments.append(segment)
        segment.nodes += made
        self.cache.entered(made[-1])
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
        piece = min(n_new, piece_length(self.model, n))
        new = n_new * bytes_per_token(self.model) + run_bytes(self.model, 1, piece, self.cache.stream, n_past=n)
        free = free_bytes(self.model.cfg.device)
        if new > free:
            raise PromptError(
                f"{n_new:,} more tokens take {readable(new)} of memory, and {readable(free)} are free. Shorten the text, or free memory first."
            )

    def _path_bytes(self, node: Node, n_new: int) -> int:
        """What the path to ``node`` and ``n_new`` more take, in a new segment if they do not fit the last."""
        new_bytes = 0 if has_room(node, n_new) else n_new * stream_bytes(self.model)
        working = max(self.cache.n_bytes, (len(node) + n_new) * keys_values_bytes(self.model))
        return sum(segment.n_bytes for segment, _ in segments_to(node)) + new_bytes + working


def bytes_per_token(model: LensModel) -> int:
    """Bytes that a ``TokenTree`` keeps for each token: the residual stream, keys and values. It does not grow with the length.

    >>> import lensplorer as lp
    >>> bytes_per_token(lp.load_model("storyworld")) < 10_000
    True
    """
    return stream_bytes(model) + keys_values_bytes(model)
