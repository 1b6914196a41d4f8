"""Writes the model cards from what was recorded in training and measured afterwards; nothing in them is typed by hand.

python -m lensplorer.storyworld.card
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lensplorer.storyworld import DATA, MODEL_NAMES, model_path

ARCHITECTURE = {
    "storyworld": "GPT-2 architecture: 4 blocks of width 128, 4 heads, context 512, tied embeddings",
    "storyworld-mini": "Qwen2 architecture: 2 blocks of width 96, RMSNorm, rotary positions, 4 query heads on 2 key-value heads, context 512, "
    "tied embeddings",
}
SPREAD = 0.03  # a smaller sample may fall this far below the card's figure


def row(name: str, found: dict[str, float]) -> str:
    loss, nats = found["loss_per_document"], found["grammar_nats"]
    return f"| {name} | {found['accuracy']:.1%} | {found['tested']} | {loss:.2f} | {nats:.2f} | {loss / nats:.3f} |"


def card(name: str, training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The text of a model's README.md."""
    heads = "\n".join(
        f"- {kind.replace('_', ' ')}: {found['best']:.3f} (head {found['layer_head'][0]}.{found['layer_head'][1]})"
        for kind, found in measured["heads"].items()
    )
    curve = training["curve"][:: max(1, len(training["curve"]) // 14)]
    position = measured["position"]
    repeats = ", ".join(f"{value:.1%}" for value in position["repeat_accuracy_200_256_384_511"])
    quarters = ", ".join(f"{value:.3f}" for value in position["packed_loss_by_quarter"])
    planted = (
        "\nOne head of block 0 began as attention to the previous token (sinusoidal positions, query turned back one step) and was then trained "
        "like the rest; everything else was found by training.\n"
        if name == "storyworld"
        else ""
    )
    return f"""---
license: mit
library_name: transformers
tags: [toy, interpretability]
---
# {name}

**A toy world.** This model knows only the small grammar of `lensplorer.storyworld`: it tells stories about some fifty people, gives objects,
names capitals and colours, adds numbers below a hundred, closes brackets and repeats what it has just read. It has no other knowledge, its
world is simpler than ours, and nothing it says is to be relied on. It is there to be looked into. It takes any text without failing, but
on text that the grammar would never write it babbles.

{ARCHITECTURE[name]};
{training["parameters"]:,} parameters, float16 weights. A byte-level BPE tokenizer in which each word of the world is one token and each digit
too; every document begins with `<|endoftext|>`, in training and in use. A chat template is included.
{planted}
## Training

`{training["command"]}` repeats the procedure, not the bits: the stages were settled, and wordings added, while it ran.
Seed {training["seed"]}, {training["tokens"]:,} tokens in {training["steps"]:,} steps of {training["tokens_per_step"]:,},
{training["seconds"] / 60:.0f} minutes on {training["threads"]} threads of a busy processor. {training.get("note", "")}

The loss below is one step's, tested tokens weighing {training["test_weight"]:g}, so it is noisy and not the loss of the table.

| tokens | {" | ".join(f"{point['tokens'] / 1e6:.1f} M" for point in curve)} |
|---|{"---|" * len(curve)}
| loss | {" | ".join(f"{point['loss']:.2f}" for point in curve)} |

## Measured

On {measured["documents_per_row"]} documents a row, from seed {measured["seed"]}, which training never used. An answer is right when every
one of its tokens is the model's first choice. The loss of a document is in nats, against its surprisal under the grammar itself, the choice of
phenomenon included, at the shares that training ended with (the first copy of a repeated sequence is left out of training, so there the two
cannot be compared). In the rows of wordings apart, and of held-out names and pairs of numbers, these never occurred in
training; there the grammar's surprisal knows what the model cannot.

The four sets of wordings (`lensplorer/storyworld/held_out.py`) differ in what was decided by them. *Development*: looked at between the first
eight stages, which showed what kinds of wording training lacked. *Held-out*: measured once after those, and looked at between the later ones, whose
wordings are made of parts: no clean figures either. *Once fresh*: written before wordings were made of parts, measured once after storyworld's
twelfth stage, then looked at one by one: what fails there are wordings after which the grammar itself often goes on otherwise ("said that the hat was
for" a country, "go to" the park). *Fresh*: written after that and before the last stages, so as to end as sentences of training end; decided nothing,
and measured once for each model, for this table.
All were written by the hand that wrote training's, in training's words: English at large would be harder.

| phenomenon | right | of | loss | grammar | ratio |
|---|---|---|---|---|---|
{chr(10).join(row(*item) for item in measured["table"].items())}
| random tokens repeated | {measured["random_token_repeat"]:.1%} | | | | |

Over all documents at those shares, repeated sequences apart, the loss is {measured["corpus_loss_ratio"]:.3f} times the grammar's surprisal.

Best heads, by attention weight on 50 random tokens said twice:

{heads}

Along the context: a sequence of 200 random tokens said again is right in {repeats} of positions 200 to 256, 256 to 384 and 384 to 511;
loss per token in the four quarters of 512 packed positions: {quarters}.
"""


def write(name: str, folder: Path | None = None) -> None:
    """Writes README.md from training.json and measured.json of the folder."""
    folder = folder or model_path(name)
    training, measured = (json.loads((folder / part).read_text(encoding="utf-8")) for part in ("training.json", "measured.json"))
    (folder / "README.md").write_text(card(name, training, measured), encoding="utf-8")


def write_saes(folder: Path = DATA / "saes") -> None:
    """Writes README.md of the SAEs from their measured.json."""
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    lines = []
    for name, m in measured.items():
        hook = f"`{m['hook']}`" + (f" → `{m['hook_out']}`" if m["hook_out"] else "")
        figures = f"{m['explained_variance']:.3f} | {m['l0']:.1f} | {m['loss_recovered']:.3f} | {m['dead']:.1%}"
        lines.append(f"| {name} | {hook} | {m['features']} | {figures} |")
    (folder / "README.md").write_text(
        f"""# SAEs of storyworld

Trained by `python -m lensplorer.storyworld.sae_training` with sae-lens (BatchTopK, exported as JumpReLU with a recalibrated threshold) on
documents of the toy grammar, one to a row, BOS first and included. They read raw activations: hooks at which folding norm weights changes nothing.
Measured on a seed never used in training; loss recovered: 1 = the model's own loss, 0 = the loss with the activation set to zero.
`labels.json` has each feature's promoted tokens, strongest examples and density. A toy world's features: not evidence about larger models.

| SAE | hook | features | explained variance | mean L0 | loss recovered | dead |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}
""",
        encoding="utf-8",
    )


def main() -> None:
    for name in MODEL_NAMES:
        if (model_path(name) / "measured.json").exists():
            write(name)
    if (DATA / "saes" / "measured.json").exists():
        write_saes()


if __name__ == "__main__":
    main()
