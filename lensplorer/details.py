"""Every activation of the positions of a ``TokenTree`` looked at last, within a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch

from lensplorer.models import LensModel, model_info
from lensplorer.nodes import Node
from lensplorer.running import Intervention, Run, hook_points
from lensplorer.segments import new_positions, stream_names

#: The logits' place among the details of a position: no hook has this name.
LOGITS = "logits"

_MOST_BYTES = 2**26
_MOST_LOGITS = 16  # positions whose logits are kept without the rest
_SHARE = 8  # and at most this part of all that the tree keeps


class Details:
    """Nodes with their details, those looked at longest ago let go.

    Attributes:
        reached: the activations that a run reaches, of those read; None before the first position.
        same_as_stream: those that are the residual stream under another name → the block that it enters, n_layers the final one.
    """

    def __init__(self, model: LensModel, reads: frozenset[str], interventions: Iterable[Intervention], max_bytes: int) -> None:
        self.reached: dict[str, None] | None = None
        self.same_as_stream: dict[str, int] = {}
        self._model, self._reads, self._interventions = model, reads, tuple(interventions)
        self._head_first = model_info(model).backend == "bridge"
        self._bound = min(_MOST_BYTES, max_bytes // _SHARE)
        self._bytes: OrderedDict[Node, int] = OrderedDict()  # the last looked at last
        self._logits: OrderedDict[Node, torch.Tensor] = OrderedDict()
        self.n_bytes = 0

    def logits(self, node: Node) -> torch.Tensor | None:
        """The logits at one position; None if they are not kept. [d_vocab]"""
        details = self.of(node)
        return details[LOGITS] if details is not None else self._logits.get(node)

    def keep_logits(self, node: Node, logits: torch.Tensor) -> None:
        """Keep the logits of a position that was landed on. [d_vocab]"""
        self._logits[node] = logits
        self.n_bytes += logits.nbytes
        if len(self._logits) > _MOST_LOGITS:
            self.n_bytes -= self._logits.popitem(last=False)[1].nbytes

    def keep(self, node: Node, run: Run) -> dict[str, torch.Tensor]:
        """Keep every activation of a run over the position of ``node`` alone, without batch dimension; and return them."""
        n = len(node)
        details = {name: own(new_positions(name, value[0], 1, n, head_first=self._head_first)) for name, value in run.activations.items()}
        if self.reached is None:
            self._learn(details)
        details[LOGITS] = run.logits[0, 0]
        node.details = details
        held = {value.data_ptr(): value.nbytes for value in details.values()}  # some have several names
        self._bytes[node] = sum(held.values())
        self.n_bytes += self._bytes[node]
        while self.n_bytes > self._bound and len(self._bytes) > 1:
            self.forget(next(iter(self._bytes)))
        return details

    def of(self, node: Node) -> dict[str, torch.Tensor] | None:
        """Those of a node, which is thereby the last looked at; None if they are not kept."""
        if node.details is not None:
            self._bytes.move_to_end(node)
        return node.details

    def forget(self, node: Node) -> None:
        """Let go what is kept of a node."""
        if node in self._logits:
            self.n_bytes -= self._logits.pop(node).nbytes
        if node.details is not None:
            node.details = None
            self.n_bytes -= self._bytes.pop(node)

    def clear(self) -> None:
        """Let go everything, and learn anew what a run reaches."""
        for node in {*self._bytes, *self._logits}:
            self.forget(node)
        self.reached, self.same_as_stream = None, {}

    def _learn(self, details: dict[str, torch.Tensor]) -> None:
        self.reached = dict.fromkeys(name for name in details if name in self._reads)
        points, stream = hook_points(self._model), stream_names(self._model)
        n_ctx = model_info(self._model).n_ctx
        edited = {id(points[name]) for each in self._interventions for name, _ in each.hooks(self._model, range(n_ctx))}
        rows = {id(points[name]): row for row, name in enumerate(stream)}
        for row, name in enumerate(stream[1:-1], start=1):  # what leaves a block enters the next, unless it is changed in between
            left = f"blocks.{row - 1}.hook_resid_post"
            if left in details and id(points[name]) not in edited and torch.equal(details[left], details[name]):
                rows.setdefault(id(points[left]), row)
        self.same_as_stream = {name: rows[id(points[name])] for name in self.reached if id(points[name]) in rows}


def own(value: torch.Tensor) -> torch.Tensor:
    """The value, or a copy where it is a part of something larger, which would be kept with it."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
