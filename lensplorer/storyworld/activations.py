"""Activations of a built-in model at the places its SAEs read, straight from the Hugging Face modules, and splices at the same places.

The names are TransformerLens's. `hook_resid_pre`, `hook_mlp_out` and `ln2.hook_normalized` (before the norm's weight and bias) are the
same whether or not norm weights are folded, so an SAE trained here fits a model loaded either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lensplorer.storyworld import grammar
from lensplorer.storyworld.corpus import CONTEXT, encode

Edit = Callable[[torch.Tensor], torch.Tensor]


def split_hook(name: str) -> tuple[int, str]:
    """The block and the kind of a hook name.

    >>> split_hook("blocks.2.hook_mlp_out")
    (2, 'hook_mlp_out')
    """
    _, block, kind = name.split(".", 2)
    return int(block), kind


def normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm without its weight and bias, as `ln2.hook_normalized`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@contextmanager
def watching(model: Any, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Within this, each run of the model leaves the named activations in the dictionary.  each [batch, position, d_model]"""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name in names:
        number, kind = split_hook(name)
        block = model.transformer.h[number]
        if kind == "hook_resid_pre":
            handles.append(block.register_forward_pre_hook(lambda _, args, n=name: found.__setitem__(n, args[0])))
        elif kind == "hook_mlp_out":
            handles.append(block.mlp.register_forward_hook(lambda _, args, out, n=name: found.__setitem__(n, out)))
        elif kind == "ln2.hook_normalized":
            handles.append(block.ln_2.register_forward_pre_hook(lambda norm, args, n=name: found.__setitem__(n, normalised(args[0], norm.eps))))
        else:
            raise ValueError(f"no activation {name!r} is known here; hook_resid_pre, hook_mlp_out and ln2.hook_normalized are")
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def splicing(model: Any, name: str, edit: Edit) -> Iterator[None]:
    """Within this, the named activation (a residual or an MLP output) is replaced by `edit` of it."""
    number, kind = split_hook(name)
    block = model.transformer.h[number]
    if kind == "hook_resid_pre":
        handle = block.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:]))
    else:
        handle = block.mlp.register_forward_hook(lambda _, args, out: edit(out))
    try:
        yield
    finally:
        handle.remove()


def document_batches(tok: Any, *, seed: int, tokens: int, size: int = 8192) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Documents one to a row, as they are used, until `tokens` of them have passed: ids, and which are not padding.  each [batch, position]

    Rows of like length share a batch.
    """
    corpus, done = grammar.corpus(seed=seed), 0
    while done < tokens:
        pool = sorted((encode(tok, next(corpus))[0][:CONTEXT] for _ in range(1500)), key=len)
        while pool and done < tokens:
            longest = len(pool[-1])
            batch = [pool.pop() for _ in range(min(len(pool), max(1, size // longest)))]
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch]).bool()
            done += int(real.sum())
            yield ids, real


@torch.no_grad()
def collect(model: Any, tok: Any, names: list[str], *, seed: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Activations at every real token, float16, and the token ids.  each [token, d_model], [token]"""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    ids_kept = []
    with watching(model, names) as found:
        for ids, real in document_batches(tok, seed=seed, tokens=tokens):
            model.transformer(ids)
            ids_kept.append(ids[real])
            for name in names:
                kept[name].append(found[name][real].half())
    return {name: torch.cat(parts) for name, parts in kept.items()}, torch.cat(ids_kept)
