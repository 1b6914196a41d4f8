"""What a correct analysis must find in `storyworld`: measured on the shipped weights, not assumed.

    python -m lensplorer.storyworld.ground_truth        (measures afresh and writes data/ground_truth.json)

`cases` gives clean and corrupt prompts; `findings` gives, per phenomenon, statements with a figure and the bound it must keep. Effects
of patching are (m(patched) - m(corrupt)) / (m(clean) - m(corrupt)) with m the logit difference right - wrong at the last position, summed
over the cases above and below before dividing, so that no case with a small difference dominates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lensplorer.storyworld import DATA
from lensplorer.storyworld.cases import PHENOMENA, Case, cases

PATH = DATA / "ground_truth.json"
FEWEST = 16  # cases on which a bound is to hold, whichever they are
HookFunction = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Finding:
    """One measured truth: `measured` on the shipped weights, and the bound that a correct analysis keeps (`at_least` or `at_most`)."""

    phenomenon: str
    name: str
    statement: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    layer: int | None = None
    head: int | None = None

    def holds(self, value: float) -> bool:
        """Whether a value found by an analysis agrees."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def findings(phenomenon: str | None = None) -> list[Finding]:
    """The shipped findings, of all phenomena or of one.

    >>> all(finding.holds(finding.measured) for finding in findings())
    True
    """
    found = [Finding(**entry) for entry in json.loads(PATH.read_text(encoding="utf-8"))]
    return [finding for finding in found if phenomenon in (None, finding.phenomenon)]


@dataclass(frozen=True)
class Batch:
    """Cases of one phenomenon as tensors.  tokens [case, position], answers [case]"""

    clean: torch.Tensor
    corrupt: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor

    @property
    def changed(self) -> list[int]:
        """Positions at which any clean prompt differs from its corrupt one."""
        return (self.clean != self.corrupt).any(0).nonzero().flatten().tolist()


def tensors(model: Any, found: Sequence[Case]) -> Batch:
    """Tokenises cases; raises `ValueError` if they do not align."""
    encode = model.tokenizer.encode
    clean, corrupt = ([encode(text) for text in texts] for texts in ([c.clean for c in found], [c.corrupt for c in found]))
    if len({len(ids) for ids in [*clean, *corrupt]}) > 1:
        raise ValueError(f"cases of {found[0].phenomenon!r} are not of one length in tokens")
    answers = [encode(text, add_special_tokens=False) for case in found for text in (case.right, case.wrong)]
    if any(len(ids) != 1 for ids in answers):
        raise ValueError(f"an answer of {found[0].phenomenon!r} is not one token")
    right, wrong = torch.tensor(answers).reshape(-1, 2).T
    return Batch(torch.tensor(clean), torch.tensor(corrupt), right, wrong)


def _run(model: Any, tokens: torch.Tensor, *, reads: Sequence[str] = (), hooks: Sequence[tuple[str, HookFunction]] = ()) -> Any:
    from lensplorer.running import run_model

    return run_model(model, tokens, reads=reads, hooks=hooks)


def difference(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Logit of the right answer less that of the wrong one at the last position.  [case]"""
    last = logits[:, -1].cpu()
    return last.gather(1, batch.right[:, None])[:, 0] - last.gather(1, batch.wrong[:, None])[:, 0]


def _replace(source: torch.Tensor, *, positions: Sequence[int] | None = None, head: int | None = None) -> HookFunction:
    """A hook that puts in `source` at some positions, of one head or of all."""

    def function(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        at = slice(None) if positions is None else list(positions)
        if head is None:
            value[:, at] = source[:, at]
        else:
            value[:, at, head] = source[:, at, head]
        return value

    return function


def zero_heads(heads: Sequence[tuple[int, int]]) -> list[tuple[str, HookFunction]]:
    """Hooks that silence (layer, head)s."""

    def silence(head: int) -> HookFunction:
        def function(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[:, :, head] = 0
            return value

        return function

    return [(f"blocks.{layer}.attn.hook_z", silence(head)) for layer, head in heads]


@dataclass(frozen=True)
class Effects:
    """Effects of putting clean activations into corrupt runs, and direct contributions in the clean one.

    source, last: residual before each block at the changed positions, at the last.  [layer]
    heads: each head's output at the last position.  [layer, head]
    mlps: each MLP's output, everywhere.  [layer]
    direct, deviation: each head's contribution to the logit difference, final scale frozen, its mean and standard deviation over cases.
        [layer, head]
    """

    solved: float
    source: torch.Tensor
    last: torch.Tensor
    heads: torch.Tensor
    mlps: torch.Tensor
    direct: torch.Tensor
    deviation: torch.Tensor


def effects(model: Any, batch: Batch) -> Effects:
    """Patches everything, clean into corrupt. Cost: layers · (heads + 4) runs of the batch."""
    layers, heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    kinds = ("hook_resid_pre", "attn.hook_z", "hook_mlp_out")
    names = [f"blocks.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    clean = _run(model, batch.clean, reads=[*names, "ln_final.hook_scale"])
    top, bottom = difference(batch, clean.logits), difference(batch, _run(model, batch.corrupt).logits)

    def effect(name: str, **where: Any) -> float:
        patched = difference(batch, _run(model, batch.corrupt, hooks=[(name, _replace(clean.activations[name], **where))]).logits)
        return float((patched - bottom).sum() / (top - bottom).sum())

    end = batch.clean.shape[1] - 1
    direct = torch.zeros(len(batch.clean), layers, heads)
    gamma = getattr(model.ln_final, "w", torch.ones(model.cfg.d_model))
    towards = (model.W_U[:, batch.right] - model.W_U[:, batch.wrong]).T * gamma  # [case, d_model]
    for layer in range(layers):
        z = clean.activations[f"blocks.{layer}.attn.hook_z"][:, -1]  # [case, head, d_head]
        out = torch.einsum("chd,hdm->chm", z, model.W_O[layer])
        out = (out - out.mean(-1, keepdim=True)) / clean.activations["ln_final.hook_scale"][:, -1, None]
        direct[:, layer] = torch.einsum("chm,cm->ch", out, towards).detach().cpu()
    return Effects(
        solved=float(((top > 0) & (bottom < 0)).float().mean()),
        source=torch.tensor([effect(f"blocks.{layer}.hook_resid_pre", positions=batch.changed) for layer in range(layers)]),
        last=torch.tensor([effect(f"blocks.{layer}.hook_resid_pre", positions=[end]) for layer in range(layers)]),
        heads=torch.tensor([[effect(f"blocks.{layer}.attn.hook_z", positions=[end], head=head) for head in range(heads)] for layer in range(layers)]),
        mlps=torch.tensor([effect(f"blocks.{layer}.hook_mlp_out") for layer in range(layers)]),
        direct=direct.mean(0),
        deviation=direct.std(0) if len(direct) > 1 else torch.zeros(layers, heads),
    )


def repeat_accuracy(model: Any, *, hooks: Sequence[tuple[str, HookFunction]] = (), length: int = 30, count: int = 16) -> float:
    """Share of the second copy of random tokens that is predicted (but its first, which cannot be)."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randint(5, int(model.cfg.d_vocab), (count, length), generator=generator)
    tokens = torch.cat([torch.zeros(count, 1, dtype=torch.long), first, first], dim=1)
    predicted = _run(model, tokens, hooks=hooks).logits.argmax(-1).cpu()
    return float((predicted[:, length + 1 : -1] == tokens[:, length + 2 :]).float().mean())


def _top(values: torch.Tensor) -> tuple[int, int, float]:
    layer, head = divmod(int(values.argmax()), values.shape[1])
    return layer, head, float(values[layer, head])


def measure_heads(model: Any) -> list[Finding]:
    """Induction and previous-token heads, and what silencing the induction heads costs."""
    from lensplorer.analyses.heads import head_scores

    scores = head_scores(model)
    found = []
    for kind in ("induction", "previous_token"):
        values = torch.tensor(scores[kind].values)
        layer, head, value = _top(values)
        statement = f"head {layer}.{head} is the strongest {kind.replace('_', '-')} head, by its score on repeated random tokens"
        found.append(Finding("repeat", f"{kind}_head", statement, value, at_least=round(value - 0.08, 3), layer=layer, head=head))
    induction = torch.tensor(scores["induction"].values)
    strong = [(int(layer), int(head)) for layer, head in (induction > 0.3).nonzero().tolist()]
    others = [(layer, head) for layer in range(induction.shape[0]) for head in range(induction.shape[1]) if induction[layer, head] < 0.05]
    last = [pair for pair in others if pair[0] == max(layer for layer, _ in strong)] or others[-1:]
    whole, without = repeat_accuracy(model), repeat_accuracy(model, hooks=zero_heads(strong))
    control = repeat_accuracy(model, hooks=zero_heads(last[:1]))
    named = ", ".join(f"{layer}.{head}" for layer, head in strong)
    found += [
        Finding("repeat", "second_copy", "the second copy of random tokens is predicted", whole, at_least=round(whole - 0.03, 3)),
        Finding(
            "repeat", "without_induction", f"silencing the induction heads ({named}) costs the second copy", without,
            at_most=round(min(without + 0.1, (whole + without) / 2), 3),
        ),
        Finding(
            "repeat", "without_another", f"silencing head {last[0][0]}.{last[0][1]}, which is none, costs it less", control,
            at_least=round((control + without) / 2, 3), layer=last[0][0], head=last[0][1],
        ),
    ]  # fmt: skip
    return found


def measure_phenomenon(model: Any, phenomenon: str, *, count: int = 24) -> list[Finding]:
    """Where one phenomenon is solved: how often, when it reaches the last position, which head and which MLP carry it."""
    effect = effects(model, tensors(model, cases(phenomenon, count=count)))
    arrives = int((effect.last < 0.5).sum()) - 1  # the last block before which the answer is not yet at the last position
    found = [
        Finding(phenomenon, "solved", "the answer turns with the prompt: right in the clean, wrong in the corrupt", effect.solved,
                at_least=round(max(0.0, effect.solved - 0.1), 3)),
        Finding(phenomenon, "starts_at_source", "before block 0 all that differs stands at the changed positions", float(effect.source[0]),
                at_least=0.999, at_most=1.001, layer=0),
        Finding(phenomenon, "arrives", f"block {arrives} brings the answer to the last position: half the effect is there after it, not before",
                float(effect.last[arrives]), at_most=0.5, layer=arrives),
    ]  # fmt: skip
    layer, head, value = _top(effect.heads)
    if value > 0.1:
        statement = f"head {layer}.{head} brings most of the difference to the last position, by patching each head's output there"
        found.append(Finding(phenomenon, "mover", statement, value, at_least=round(0.5 * value, 3), layer=layer, head=head))
    layer, head, value = _top(effect.direct)
    least = value - 3 * float(effect.deviation[layer, head]) / FEWEST**0.5  # three standard errors of as few cases as can tell
    if least > 0:
        statement = f"head {layer}.{head} writes most directly for the right answer, in logits"
        found.append(Finding(phenomenon, "direct", statement, value, at_least=round(least, 3), layer=layer, head=head))
    layer = int(effect.mlps.argmax())
    if (value := float(effect.mlps[layer])) > 0.1:
        statement = f"the MLP of block {layer} carries most of the difference among the MLPs"
        found.append(Finding(phenomenon, "mlp", statement, value, at_least=round(0.7 * value, 3), layer=layer))
    return found


def measure(model: Any, *, phenomena: Sequence[str] = PHENOMENA) -> list[Finding]:
    """All findings, measured on `model` (from `lensplorer.load_model("storyworld")`). Takes some tens of seconds."""
    return [*measure_heads(model), *(finding for name in phenomena for finding in measure_phenomenon(model, name))]


def main() -> None:
    from lensplorer.models import load_model

    found = measure(load_model("storyworld"))
    PATH.write_text(json.dumps([{k: v for k, v in asdict(finding).items() if v is not None} for finding in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
