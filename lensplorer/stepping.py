"""A prefix tree of runs (plain first version: each trace is a fresh run)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lensplorer.models import LensModel
from lensplorer.trace import Reads, Trace, run_trace


@dataclass(frozen=True)
class Node:
    ids: tuple[int, ...] = ()


class TokenTree:
    def __init__(self, model: LensModel, *, reads: Reads = None, interventions: tuple[Any, ...] = (), max_bytes: int = 2 * 2**30) -> None:
        self.model, self.reads, self.interventions = model, reads, interventions
        self.root = Node()
        self._last: dict[Node, Trace] = {}

    def extend(self, node: Node, ids: Sequence[int]) -> Node:
        return Node((*node.ids, *ids))

    def trace(self, node: Node) -> Trace:
        if node not in self._last:
            self._last = {node: run_trace(self.model, list(node.ids), reads=self.reads, interventions=self.interventions)}
        return self._last[node]
