"""From documents to rows of tokens: what training sees, and which tokens weigh how much.

Documents are packed without padding, each led by `<|endoftext|>`. Tested tokens weigh more than the free choices around them, and the first copy
of a repeated sequence, which nothing could predict, weighs nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from lensplorer.storyworld import grammar, tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT = 512
TEST_WEIGHT = 3.0
IGNORED = 0.0


def encode(tok: PreTrainedTokenizerFast, example: grammar.Example) -> tuple[list[int], list[bool]]:
    """Token ids of a document, and which of them are tested."""
    encoded = tok(example.text, return_offsets_mapping=True)
    tested, spans, i = [], example.tests, 0
    for start, end in encoded["offset_mapping"]:
        while i < len(spans) and spans[i][1] <= start:
            i += 1
        tested.append(i < len(spans) and start < end and start >= spans[i][0] and end <= spans[i][1])
    return encoded["input_ids"], tested


def random_repeat(rng: random.Random, vocabulary: int, longest: int = 100) -> tuple[list[int], int]:
    """Random tokens said two to four times after a BOS, and the length of the first copy with its BOS."""
    length = round(math.exp(rng.uniform(math.log(4), math.log(longest))))
    first = [rng.randrange(len(tokenizer.SPECIALS), vocabulary) for _ in range(length)]
    return [0, *first * min(rng.randint(2, 4), 440 // length)], length + 1


def documents(
    tok: PreTrainedTokenizerFast, seed: int, *, repeats: float = 0.042, longest: int = 100, more: Mapping[str, float] | None = None
) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and loss weights of one document after another."""
    rng, corpus = random.Random(seed), grammar.corpus(seed=seed, more=more)
    while True:
        if rng.random() < repeats:
            ids, first = random_repeat(rng, len(tok), longest)
            yield ids, [IGNORED] * first + [TEST_WEIGHT] * (len(ids) - first)
            continue
        example = next(corpus)
        ids, tested = encode(tok, example)
        free = IGNORED if example.phenomenon == "repeat" else 1.0
        yield ids, [TEST_WEIGHT if test else free for test in tested]


def rows(source: Iterator[tuple[list[int], list[float]]], count: int, length: int, rest: list[tuple[int, float]]) -> torch.Tensor:
    """`count` packed rows of `length` + 1 tokens: ids and weights, stacked.  [2, count, length + 1]"""
    need = count * (length + 1)
    while len(rest) < need:
        ids, weights = next(source)
        rest.extend(zip(ids, weights, strict=True))
    taken = rest[:need]
    del rest[:need]
    return torch.tensor(taken, dtype=torch.float64).T.reshape(2, count, length + 1)
