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


def document_batches(tok: Any, *, seed: int, tokens: int, size: int = 8192) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Documents one to a row, as they are used, until `tokens` of them have passed. Rows of like length share a batch.

    Yields ids, which are not padding, and which can be predicted: not BOS, nor the first copy of a repeated sequence.  each [batch, position]
    """
    corpus, done = grammar.corpus(seed=seed), 0
    while done < tokens:
        pool: list[tuple[list[int], list[bool]]] = []
        while len(pool) < 1500 and done < tokens:  # whole pools only: the longest alone would be no fair sample
            example = next(corpus)
            ids, tested = encode(tok, example)
            ids, tested = ids[:CONTEXT], tested[:CONTEXT]
            pool.append((ids, tested if example.phenomenon == "repeat" else [False] + [True] * (len(ids) - 1)))
            done += len(ids)
        pool.sort(key=lambda row: len(row[0]))
        while pool:
            longest = len(pool[-1][0])
            batch = [pool.pop() for _ in range(min(len(pool), max(1, size // longest)))]
            lengths = torch.tensor([len(ids) for ids, _ in batch])
            padded = [torch.tensor([list(row[part]) + [0] * (longest - len(row[part])) for row in batch]) for part in (0, 1)]
            yield padded[0], torch.arange(longest) < lengths[:, None], padded[1].bool()


@torch.no_grad()
def collect(model: Any, tok: Any, names: list[str], *, seed: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Activations at every real token, float16, and the token ids.  each [token, d_model], [token]"""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    ids_kept = []
    with watching(model, names) as found:
        for ids, real, _ in document_batches(tok, seed=seed, tokens=tokens):
            model.transformer(ids)
            ids_kept.append(ids[real])
            for name in names:
                kept[name].append(found[name][real].half())
    return {name: torch.cat(parts) for name, parts in kept.items()}, torch.cat(ids_kept)
