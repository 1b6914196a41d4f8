"""The nodes of a ``TokenTree``: tokens in their context, in segments that share a stretch of memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from lensplorer.segments import Stretch

if TYPE_CHECKING:
    from lensplorer.stepping import TokenTree


class Segment:
    """A run of nodes without branches between them, which share a stretch; the stretch is None when it was dropped."""

    def __init__(self, parent: Node, stretch: Stretch) -> None:
        self.parent = parent
        self.start = len(parent)
        self.capacity = stretch.capacity
        self.stretch: Stretch | None = stretch
        self.nodes: list[Node] = []
        self.touched = 0
        self.result_bytes = 0

    @property
    def n_bytes(self) -> int:
        return (self.stretch.n_bytes if self.stretch is not None else 0) + self.result_bytes


class Results(MutableMapping[Any, Any]):
    """Results already computed at one node, under whatever key their maker chose; they count in the tree's bytes and go with the node."""

    def __init__(self, changed: Callable[[int], None]) -> None:
        self._values: dict[Any, Any] = {}
        self._changed = changed

    def __getitem__(self, key: Any) -> Any:
        return self._values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        added = _size(value) - (_size(self._values[key]) if key in self._values else 0)
        self._values[key] = value
        self._changed(added)

    def __delitem__(self, key: Any) -> None:
        self._changed(-_size(self._values.pop(key)))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _size(value: Any) -> int:
    """Bytes of a tensor, an array, a dataset, a table of these, or an object by itself."""
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(_size(item) for item in value.values())
    size = getattr(value, "nbytes", None)
    return int(size) if isinstance(size, int) else sys.getsizeof(value)


class Node:
    """A token in its context. ``len(node)`` is how many tokens lead to it, itself included; the root has none.

    Attributes:
        tree: the tree it belongs to.
        parent: the node before it; None for the root.
        token_id: its token; None for the root.
        children: token id → node, in the order in which they were first run.
        segment: the run of nodes that it shares memory with; None for the root.
        results: results computed at this position, kept until memory is short.
    """

    __slots__ = ("_depth", "children", "parent", "results", "segment", "token_id", "tree")

    def __init__(self, tree: TokenTree, parent: Node | None, token_id: int | None, segment: Segment | None) -> None:
        self.tree, self.parent, self.token_id, self.segment = tree, parent, token_id, segment
        self._depth: int = 0 if parent is None else len(parent) + 1
        self.children: dict[int, Node] = {}
        self.results = Results(self._results_changed)

    def __len__(self) -> int:
        return self._depth

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "Node(root)" if self.parent is None else f"Node({self.token_id}, depth {self._depth}, {len(self.children)} children)"

    def _results_changed(self, added: int) -> None:
        if self.segment is not None:
            self.segment.result_bytes += added
            self.tree.trim(self)


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
