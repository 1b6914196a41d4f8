"""Grows a decoder on the toy world: one plain loop for both architectures.

    python -m lensplorer.storyworld.train storyworld

Muon (Jordan et al. 2024) on the matrices of the blocks, AdamW on the rest, in stages that differ in what they show. Documents are packed
into rows without padding, each led by `<|endoftext|>`. Rows start at a random position of the context, so that every position is
trained while most rows are short; the last steps use the full context.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lensplorer.storyworld import model_path, tokenizer
from lensplorer.storyworld.architecture import new_model
from lensplorer.storyworld.corpus import CONTEXT, TEST_WEIGHT, documents, rows
from lensplorer.storyworld.muon import Muon

TOKENS_PER_STEP = 2048


@dataclass(frozen=True)
class Stage:
    """A part of the training, with optimizers of its own.

    rows: (share of the stage, row length); repeats: share of the documents that are random tokens repeated; longest: of their copies;
    rate: of the peak learning rates, at the start and the end.
    """

    tokens: int
    rows: tuple[tuple[float, int], ...]
    repeats: float = 0.042
    longest: int = 100
    rate: tuple[float, float] = (1.0, 1.0)
    more: tuple[tuple[str, float], ...] = ()  # factors on the grammar's weights
    start: int | None = None  # the stage from whose end it starts; None: the one before


# By the last stage arithmetic is known; what copies and refers still gains.
LAST = (("indirect_object", 1.6), ("name_reference", 1.4), ("json", 1.6), ("capital", 1.3), ("drill", 0.6), ("young", 1.5))
REFERENCE = (("indirect_object", 1.5), ("name_reference", 4.0), ("capital", 1.5), ("drill", 0.6), ("young", 1.5), ("sum", 0.7), ("json", 1.2))
FACTS = (("indirect_object", 1.3), ("capital", 2.5), ("chat", 2.0), ("drill", 0.8), ("young", 1.5))
# Two stages: wordings of facts and problems were widened once more, and `held_out` set apart.
WORDINGS = (
    ("indirect_object", 1.6), ("pronoun", 1.3), ("name_reference", 0.7), ("capital", 2.5), ("colour", 2.0), ("young", 3.0), ("list", 1.5),
    ("sum", 1.3), ("drill", 0.6), ("json", 1.2), ("chat", 1.3),
)  # fmt: skip
# After those, wordings were made of parts: thousands of sentences in place of hundreds.
PARTS = (
    ("indirect_object", 2.0), ("pronoun", 1.3), ("name_reference", 0.6), ("capital", 2.5), ("colour", 3.5), ("young", 5.0), ("list", 1.4),
    ("sum", 1.2), ("double", 1.2), ("half", 1.2), ("drill", 0.6), ("json", 1.1), ("chat", 1.4),
)  # fmt: skip
# Then, among the parts, those that lead straight to the answer became the usual ones.
PLAIN = (*PARTS, ("indirect_object", 2.5), ("capital", 3.0), ("colour", 4.0), ("young", 7.0))
# Two last runs, both from the twelfth stage: more indirect objects, often without a comma, so that who is named decides and not where.
FIRM = (*PLAIN, ("indirect_object", 3.5), ("colour", 5.0))
STAGES = {
    "storyworld": (
        Stage(7_168_000, ((0.781, 128), (0.219, 256))),
        # Copying by content (repeats, then indirect objects and JSON) begins suddenly at 6 to 7 M tokens; much of it at once makes it firm.
        Stage(2_048_000, ((1.0, 256),), repeats=0.5, longest=24, rate=(0.7, 0.7)),
        Stage(2_048_000, ((1.0, 256),), rate=(0.7, 0.5)),
        Stage(5_120_000, ((0.8, 256), (0.2, 512)), rate=(0.8, 0.0), more=LAST),
        Stage(2_048_000, ((0.7, 256), (0.3, 512)), repeats=0.03, rate=(0.4, 0.0), more=REFERENCE),
        Stage(1_024_000, ((0.7, 256), (0.3, 512)), rate=(0.3, 0.0), more=FACTS),
        Stage(3_072_000, ((0.8, 256), (0.2, 512)), rate=(0.4, 0.4), more=WORDINGS),
        Stage(3_072_000, ((0.7, 256), (0.3, 512)), rate=(0.4, 0.0), more=WORDINGS),
        Stage(4_096_000, ((0.8, 256), (0.2, 512)), repeats=0.035, rate=(0.5, 0.4), more=PARTS),
        Stage(4_096_000, ((0.7, 256), (0.3, 512)), repeats=0.035, rate=(0.4, 0.0), more=PARTS),
        Stage(4_096_000, ((0.7, 256), (0.3, 512)), repeats=0.035, rate=(0.5, 0.0), more=PLAIN),
        Stage(2_457_600, ((0.7, 256), (0.3, 512)), repeats=0.035, rate=(0.5, 0.0), more=PLAIN),
        Stage(3_072_000, ((0.7, 256), (0.3, 512)), repeats=0.035, rate=(0.5, 0.0), more=FIRM),
        Stage(3_072_000, ((0.7, 256), (0.3, 512)), repeats=0.035, rate=(0.5, 0.0), more=(*FIRM, ("colour", 6.0)), start=11),
    ),
    "storyworld-mini": (
        Stage(2_048_000, ((1.0, 128),), repeats=0.5, longest=24),
        Stage(6_144_000, ((0.5, 128), (0.3, 256), (0.2, 512)), rate=(1.0, 0.0), more=LAST),
        Stage(5_120_000, ((0.6, 128), (0.3, 256), (0.1, 512)), repeats=0.035, rate=(0.8, 0.0), more=PLAIN),
        Stage(2_048_000, ((0.6, 128), (0.3, 256), (0.1, 512)), repeats=0.035, rate=(0.6, 0.0), more=(*FIRM, ("json", 2.0))),
    ),
}
# What is kept: the mean of the weights at the ends of stages, in these shares (Wortsman et al. 2022); else the last stage's.
SHARES = {"storyworld": {11: 0.4, 12: 0.5, 13: 0.1}}
SEEDS = {"storyworld": 1, "storyworld-mini": 2}


def train(name: str, out: Path, *, first: int = 0, start: Path | None = None, every: int = 500) -> None:
    """Trains and saves to `out`, with a checkpoint each `every` steps and the record that the model card shows in training.json.

    `first` and `start` take up the training at a stage, from the weights that the stage before left.
    """
    seed, started = SEEDS[name], time.time()
    torch.manual_seed(seed)
    tok = tokenizer.build()
    model = new_model(name, len(tok)).train()
    record: dict[str, Any] = {"name": name, "seed": seed, "steps": 0, "seconds": 0, "curve": []}
    if start:
        record |= json.loads((start / "training.json").read_text(encoding="utf-8"))
        state = {key: value.float() for key, value in load_file(start / "model.safetensors").items()}
        model.load_state_dict(state, strict=False)
        started -= record["seconds"]
    record |= {"tokens_per_step": TOKENS_PER_STEP, "test_weight": TEST_WEIGHT, "threads": torch.get_num_threads()}
    record |= {"parameters": sum(p.numel() for p in model.parameters()), "command": f"python -m lensplorer.storyworld.train {name}"}
    ends = {first - 1: _weights(model)}
    for number, stage in list(enumerate(STAGES[name]))[first:]:
        if stage.start is not None:
            _set_mean(model, ends, {stage.start: 1.0})
        for step, loss in enumerate(run_stage(model, tok, stage, seed + 1000 * number)):
            if step % 100 == 0:
                tokens = (record["steps"] + step) * TOKENS_PER_STEP
                record["curve"].append({"tokens": tokens, "loss": round(loss, 4), "seconds": round(time.time() - started)})
                sys.stderr.write(json.dumps(record["curve"][-1]) + "\n")
            if step and step % every == 0:
                save(model, tok, out)
        ends[number] = _weights(model)
        record["steps"] += step
        record |= {"tokens": record["steps"] * TOKENS_PER_STEP, "seconds": round(time.time() - started), "stages": number + 1}
        save(model, tok, out)
        (out / "training.json").write_text(json.dumps(record), encoding="utf-8")
    if name in SHARES:
        _set_mean(model, ends, SHARES[name])
        save(model, tok, out)


def _weights(model: PreTrainedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _set_mean(model: PreTrainedModel, ends: Mapping[int, Sequence[torch.Tensor]], shares: Mapping[int, float]) -> None:
    """Gives `model` the mean of the weights at the ends of stages."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(sum((share * ends[stage][i] for stage, share in shares.items()), torch.zeros_like(parameter)))


def run_stage(model: PreTrainedModel, tok: PreTrainedTokenizerFast, stage: Stage, seed: int) -> Iterator[float]:
    """Trains through one stage; yields the loss of each step."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or ".layers." in n)]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = (Muon(matrices, lr=5e-3), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0))
    source, offsets = documents(tok, seed, repeats=stage.repeats, longest=stage.longest, more=dict(stage.more)), torch.Generator().manual_seed(seed)
    rest: list[tuple[int, float]] = []
    steps = stage.tokens // TOKENS_PER_STEP
    for step in range(steps + 1):
        done, share = step / (steps + 1), 0.0
        for part, length in stage.rows:  # noqa: B007
            share += part
            if done < share:
                break
        factor = min(1.0, (step + 1) / 100) * (stage.rate[0] + (stage.rate[1] - stage.rate[0]) * done)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        batch = rows(source, TOKENS_PER_STEP // length, length, rest)
        ids, weights = batch[0].long(), batch[1, :, 1:].float()
        start = torch.randint(0, CONTEXT - length + 1, (len(ids), 1), generator=offsets)
        start[torch.rand(start.shape, generator=offsets) < 0.5] = 0
        positions = start + torch.arange(length)
        logits = model(ids[:, :-1], position_ids=positions, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def save(model: PreTrainedModel, tok: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes a Hugging Face folder with float16 weights."""
    half = {key: value.to(torch.float16) for key, value in model.state_dict().items() if key != "lm_head.weight"}
    model.save_pretrained(out, state_dict=half)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = "float16"
    if config["model_type"] == "gpt2":  # the same function under the name every loader knows, and the field some still read
        config |= {"activation_function": "gelu_new", "n_ctx": CONTEXT}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tok.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(STAGES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first", type=int, default=0, help="the stage to begin with")
    parser.add_argument("--start", type=Path, help="the folder that the stage before wrote")
    options = parser.parse_args()
    train(options.name, options.out or model_path(options.name), first=options.first, start=options.start)


if __name__ == "__main__":
    main()
