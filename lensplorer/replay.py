"""A part of a run, made again: some blocks alone, from the residual stream that entered the first of them.

What a block does is a function of its input, of the keys and values before it and of the weights. So whoever keeps the residual stream entering
each block, and the keys and values, can make everything else again where somebody looks. The model's own forward pass runs, with its own masks,
positions and hooks; blocks that are not asked for hand on what they are given, and the run ends where the last one asked for does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lensplorer.models import LensModel


@dataclass(frozen=True, eq=False)
class Part:
    """Blocks ``start`` to ``stop - 1``, and what entered the first of them.

    Attributes:
        start, stop: equal and 0: the embeddings alone. Equal and n_layers: the end alone, from the final residual stream to the logits.
        residual: the residual stream as block ``start`` received it, after any hook on it; None where the run begins with the embeddings, at
            block 0. [1, position, d_model]
    """

    start: int
    stop: int
    residual: torch.Tensor | None


class Finished(BaseException):
    """The part is done; the rest of the forward pass is not wanted. No ``except Exception`` of a library may take it for an error."""


@contextmanager
def only(model: LensModel, part: Part) -> Iterator[None]:
    """While this is open, a forward pass of ``model`` runs this part alone, and ends with ``Finished`` unless the part goes on to the logits."""
    blocks = list(model.blocks)  # type: ignore[attr-defined]
    wrap = _returns(model)
    residual = part.residual

    def hand_on(given: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            entering = args[0] if args else kwargs.get("hidden_states", kwargs.get("resid_pre"))
            return wrap(residual if given else entering)

        return forward

    def run(block: Any, *, is_first: bool, is_last: bool) -> Callable[..., Any]:
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_first and residual is not None:
                name = "hidden_states" if "hidden_states" in kwargs else "resid_pre"
                args, kwargs = ((residual, *args[1:]), kwargs) if args else ((), {**kwargs, name: residual})
            out = own(*args, **kwargs)
            if is_last:
                raise Finished
            return out

        return forward

    def end(*args: Any, **kwargs: Any) -> Any:
        raise Finished

    changed = []
    try:
        for i, block in enumerate(blocks):
            if part.stop == 0:
                forward: Callable[..., Any] = end
            elif part.start <= i < part.stop:
                forward = run(block, is_first=i == part.start, is_last=i == part.stop - 1)
            else:
                forward = hand_on(given=i == len(blocks) - 1)
            changed.append(block)
            block.__dict__["forward"] = forward
        yield
    finally:
        for block in changed:
            block.__dict__.pop("forward", None)


_wraps: WeakKeyDictionary[Any, Callable[[Any], Any]] = WeakKeyDictionary()


def _returns(model: LensModel) -> Callable[[Any], Any]:
    """How this model's blocks return the residual stream: bare, or first in a tuple. Seen in one run over one token."""
    if model not in _wraps:
        seen: list[Any] = []
        handle = model.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))  # type: ignore[attr-defined]
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device), return_type=None)
        finally:
            handle.remove()
        out = seen[0]
        _wraps[model] = (lambda residual: (residual, *out[1:])) if isinstance(out, tuple) else (lambda residual: residual)
    return _wraps[model]
