"""The nodes of a ``TokenTree``: tokens in their context, in segments that share a stretch of memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.segments import Parked, Stretch

if TYPE_CHECKING:
    from lensplorer.stepping import TokenTree


class Columns:
    """What one analysis says of each position of a segment, with a row per position.

    Attributes:
        known: which rows have been computed. [capacity]
        values: variable → rows. [capacity, ...]
        about: whatever else is needed to make a result of the rows, of the last window computed.
    """

    def __init__(self, capacity: int) -> None:
        self.known = np.zeros(capacity, dtype=bool)
        self.values: dict[str, np.ndarray] = {}
        self.about: Any = None

    def write(self, start: int, stop: int, values: Mapping[str, np.ndarray], about: Any) -> None:
        """Rows ``start`` to ``stop - 1``. variable → [stop - start, ...]"""
        for name, rows in values.items():
            if name not in self.values:
                self.values[name] = np.empty((len(self.known), *rows.shape[1:]), dtype=rows.dtype)
            self.values[name][start:stop] = rows
        self.known[start:stop] = True
        self.about = about

    @property
    def n_bytes(self) -> int:
        return self.known.nbytes + sum(rows.nbytes for rows in self.values.values())


class Segment:
    """A run of nodes without branches between them, which share a stretch.

    Attributes:
        parent: the node before the first.
        start: how many tokens lead to it.
        capacity: how many nodes fit.
        stretch: their residual stream; None when it was dropped.
        parked: keys and values of those of its positions that the working cache does not hold.
        columns: question → what it says of each position.
    """

    def __init__(self, parent: Node, stretch: Stretch, capacity: int) -> None:
        self.parent = parent
        self.start = len(parent)
        self.capacity = capacity
        self.stretch: Stretch | None = stretch
        self.parked: list[Parked] = []
        self.columns: dict[Hashable, Columns] = {}
        self.nodes: list[Node] = []
        self.touched = 0

    @property
    def n_bytes(self) -> int:
        kept = self.stretch.n_bytes if self.stretch is not None else 0
        return kept + sum(each.n_bytes for each in self.parked) + sum(each.n_bytes for each in self.columns.values())

    def columns_of(self, key: Hashable, rows: int) -> Columns:
        """The columns of a question, with room for at least so many rows."""
        found = self.columns.get(key)
        if found is None or len(found.known) < rows:
            found = self.columns[key] = Columns(max(self.capacity, rows))
        return found

    def drop(self) -> None:
        """Forget all but the tokens."""
        self.stretch = None
        self.parked.clear()
        self.columns.clear()


class Node:
    """A token in its context. ``len(node)`` is how many tokens lead to it, itself included; the root has none.

    Attributes:
        tree: the tree it belongs to.
        parent: the node before it; None for the root.
        token_id: its token; None for the root.
        children: token id → node, in the order in which they were first run.
        segment: the run of nodes that it shares memory with; None for the root.
        details: every activation of this position, as its run recorded them; None unless it is one of those looked at last.
    """

    __slots__ = ("_depth", "children", "details", "parent", "segment", "token_id", "tree")

    def __init__(self, tree: TokenTree, parent: Node | None, token_id: int | None, segment: Segment | None) -> None:
        self.tree, self.parent, self.token_id, self.segment = tree, parent, token_id, segment
        self._depth: int = 0 if parent is None else len(parent) + 1
        self.children: dict[int, Node] = {}
        self.details: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return self._depth

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Node(root)" if self.parent is None else f"Node({self.token_id}, depth {self._depth}, {len(self.children)} children)"


def has_room(node: Node, n_new: int) -> bool:
    """Whether ``node`` is the last of its segment, with room for ``n_new`` more."""
    segment = node.segment
    return segment is not None and segment.nodes[-1] is node and len(segment.nodes) + n_new <= segment.capacity


def segments_to(node: Node) -> list[tuple[Segment, int]]:
    """The segments on the way to ``node``, each with the depth at which the path leaves it."""
    found: list[tuple[Segment, int]] = []
    step: Node | None = node
    while step is not None and step.segment is not None:
        found.append((step.segment, len(step)))
        step = step.segment.parent
    return found[::-1]
