"""Measures a built-in model on documents of a seed that training never saw.

    python -m lensplorer.storyworld.evaluate storyworld

An answer is right when each of its tokens is the model's first choice, given the true text before it; that is what greedy decoding of
the answer would need. The loss of a document is held against its surprisal under the grammar (`Example.nats`), which bounds it from
below on average, up to the few texts that two sequences of choices share.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from lensplorer.storyworld import grammar, model_path
from lensplorer.storyworld.corpus import CONTEXT, IGNORED, documents, encode, random_repeat, rows

SEED = 90_001  # never trained on
WORDINGS: dict[str, Literal["development", "held_out", "once_fresh", "fresh"]] = {
    "development wordings": "development",
    "held-out wordings": "held_out",
    "once fresh wordings": "once_fresh",
    "fresh wordings": "fresh",
}
# row of the table → (phenomenon, world)
ROWS: dict[str, tuple[str, grammar.World]] = {
    **{name: (name, grammar.World()) for name in grammar.PHENOMENA},
    "indirect_object, held-out names": ("indirect_object", grammar.World(held_out_names=True)),
    "indirect_object, held-out wordings and names": ("indirect_object", grammar.World(wordings="held_out", held_out_names=True)),
    "sum, held-out pairs of numbers": ("sum", grammar.World(held_out_sums=True)),
    "drill, held-out pairs of numbers": ("drill", grammar.World(held_out_sums=True)),
    **{
        f"{name}, {words}": (name, grammar.World(wordings=key))
        for words, key in WORDINGS.items()
        for name in ("indirect_object", "pronoun", "name_reference", "capital", "colour", "young", "quote", "sum", "double", "half")
    },
}


def load(path: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, from a Hugging Face folder."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    return model, PreTrainedTokenizerFast.from_pretrained(path)


@torch.no_grad()
def log_probs(model: Any, ids: list[list[int]]) -> list[torch.Tensor]:
    """Log-probabilities of every next token, sequences in batches of like length.  each [position - 1, vocabulary]"""
    found: dict[int, torch.Tensor] = {}
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        longest = len(ids[order[-1]])
        batch, order = order[-max(1, 4096 // longest) :], order[: -max(1, 4096 // longest)]
        padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in batch])
        logits = model(padded).logits.log_softmax(-1)
        for row, i in enumerate(batch):
            found[i] = logits[row, : len(ids[i]) - 1]
    return [found[i] for i in range(len(ids))]


def measure(model: Any, tok: Any, examples: list[grammar.Example], *, more: Mapping[str, float] | None = None) -> dict[str, float]:
    """Accuracy over the tested spans, and loss against the grammar's own surprisal when the shares of documents are as `more` says."""
    share = grammar.shares(more)
    encoded = [[*encode(tok, example)[0], 0][:CONTEXT] for example in examples]  # that it ends there is a choice of the grammar too
    right = total = 0
    loss = nats = 0.0
    for example, ids, scores in zip(examples, encoded, log_probs(model, encoded), strict=True):
        target = torch.tensor(ids[1:])
        hit = scores.argmax(-1) == target
        for start, end in spans_in_tokens(tok, example):
            if end <= len(ids):
                right += bool(hit[start - 1 : end - 1].all())
                total += 1
        loss -= scores.gather(-1, target[:, None]).sum().item()
        nats += example.nats - math.log(share[example.phenomenon])
    return {"accuracy": right / max(total, 1), "tested": total, "loss_per_document": loss / len(examples), "grammar_nats": nats / len(examples)}


def spans_in_tokens(tok: Any, example: grammar.Example) -> list[tuple[int, int]]:
    """The tested spans as (first, after last) token positions, the BOS being position 0."""
    offsets = tok(example.text, return_offsets_mapping=True)["offset_mapping"]
    starts = {start: i for i, (start, end) in enumerate(offsets) if end > start}
    ends = {end: i + 1 for i, (start, end) in enumerate(offsets) if end > start}
    return [(starts[start], ends[end]) for start, end in example.tests]


def random_sequences(count: int, length: int, vocabulary: int, *, copies: int = 2, seed: int = SEED) -> torch.Tensor:
    """BOS, then random tokens said `copies` times.  [count, 1 + copies · length]"""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(5, vocabulary, (count, length), generator=generator)
    return torch.cat([torch.zeros(count, 1, dtype=torch.long), first.repeat(1, copies)], dim=1)


@torch.no_grad()
def head_scores(model: Any, *, length: int = 50, count: int = 8) -> dict[str, torch.Tensor]:
    """Mean attention weight to the previous token, to the token's earlier copy, and to the one after that.  each [layer, head]

    On random tokens said twice; previous-token over all positions but the first two, the others over the second copy.
    """
    ids = random_sequences(count, length, model.config.vocab_size)
    patterns = torch.stack(model(ids, output_attentions=True).attentions)  # [layer, batch, head, query, source]

    def along(offset: int, first: int) -> torch.Tensor:
        return patterns.diagonal(-offset, dim1=-2, dim2=-1)[..., first - offset :].mean(dim=(1, 3))

    second = length + 1
    return {"previous_token": along(1, 2), "duplicate_token": along(length, second), "induction": along(length - 1, second)}


@torch.no_grad()
def by_position(model: Any, tok: Any) -> dict[str, list[float]]:
    """Quality along the context, in quarters: accuracy on a random sequence of 200 said again up to 512, and loss on packed documents."""
    ids = random_sequences(8, 200, len(tok), copies=3)[:, :CONTEXT]
    hit = model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]  # prediction of position p+1
    accuracy = [hit[:, low:high].float().mean().item() for low, high in ((200, 256), (256, 384), (384, 511))]
    batch = rows(documents(tok, SEED), 32, CONTEXT, [])
    packed, weights = batch[0].long(), batch[1, :, 1:] != IGNORED
    scores = model(packed[:, :-1]).logits.log_softmax(-1)
    losses = -scores.gather(-1, packed[:, 1:, None]).squeeze(-1)
    quarters = [(losses[:, q : q + 128] * weights[:, q : q + 128]).sum() / weights[:, q : q + 128].sum() for q in range(0, CONTEXT, 128)]
    return {"repeat_accuracy_200_256_384_511": accuracy, "packed_loss_by_quarter": [value.item() for value in quarters]}


def random_token_repeat(model: Any, tok: Any, count: int) -> float:
    """Accuracy on everything after the first copy of a random token sequence, lengths 4 to 100."""
    rng = random.Random(SEED)
    sequences = [random_repeat(rng, len(tok)) for _ in range(count)]
    right = total = 0
    for (ids, first), scores in zip(sequences, log_probs(model, [ids for ids, _ in sequences]), strict=True):
        hits = scores[first:].argmax(-1) == torch.tensor(ids[first + 1 :])  # its first token cannot be known to begin again
        right, total = right + int(hits.sum()), total + len(hits)
    return right / total


def table(
    model: Any, tok: Any, *, count: int = 200, rows_: Iterable[str] = ROWS, more: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """Accuracy and loss for each row: a phenomenon, seen or held out."""
    found = {}
    for row in rows_:
        phenomenon, world = ROWS[row]
        found[row] = measure(model, tok, [grammar.write(phenomenon, seed=f"{SEED}:{i}", world=world) for i in range(count)], more=more)
    return found


def evaluate(path: Path, *, count: int = 200) -> dict[str, Any]:
    """Everything the model card shows."""
    from lensplorer.storyworld.train import STAGES

    model, tok = load(path)
    scores = head_scores(model)
    more = dict(STAGES[path.name][-1].more)  # the shares that training ended with
    rows_ = table(model, tok, count=count, more=more)
    counted = {name: share for name, share in grammar.shares(more).items() if name != "repeat"}  # its first copies were no part of training
    loss, nats = (sum(share * rows_[name][part] for name, share in counted.items()) for part in ("loss_per_document", "grammar_nats"))
    return {
        "seed": SEED,
        "documents_per_row": count,
        "table": rows_,
        "corpus_loss_ratio": loss / nats,
        "random_token_repeat": random_token_repeat(model, tok, count),
        "heads": {name: {"best": value.max().item(), "layer_head": divmod(int(value.argmax()), value.shape[1])} for name, value in scores.items()},
        "position": by_position(model, tok),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a built-in model's name or a folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = Path(options.model)
    result = evaluate(path if path.is_dir() else model_path(options.model), count=options.count)
    for row, found in result["table"].items():
        ratio = found["loss_per_document"] / found["grammar_nats"] if found["grammar_nats"] else float("nan")
        loss = f"{found['loss_per_document']:7.2f} / {found['grammar_nats']:7.2f} = {ratio:.3f}"
        _out(f"{row:48} {found['accuracy']:.3f} of {found['tested']:5}   loss {loss}")
    for key in ("corpus_loss_ratio", "random_token_repeat", "heads", "position"):
        _out(f"{key}: {json.dumps(result[key])}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _out(line: str) -> None:
    import sys

    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
