"""What the local linear model finds, beside what is known: on the built-in model, and with --real on SmolLM2-135M-Instruct.

    python tests/benchmarks/measure_linear.py [--real] [--count 100] [--pairs 24] [--threads 1]

**Names**: in how many sentences the token of largest attribution is the right name; of the right name's logit, and of its difference to the wrong
one. **Patching**: Pearson's and Spearman's correlation of estimated effects with those of real patching, over all cells that can change something,
and the mean over layers of the same within a layer. Takes minutes, with --real an hour; not run by ``make bench``: docs/methods.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the sentences are in tests

import lensplorer as lp
from lensplorer.errors import PromptError, TokenError
from lensplorer.storyworld import cases
from tests.real.sentences import sentences

REAL = Path(__file__).resolve().parents[2] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear, gate", {"method": "linear", "rule": "gate"}),
    ("linear, half", {"method": "linear", "rule": "half"}),
    ("input x gradient", {"method": "input_x_gradient"}),
)
ESTIMATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {}),
    ("gate", {"gradients": "linear", "rule": "gate"}),
    ("half", {"gradients": "linear", "rule": "half"}),
)


def prompts(real: bool, count: int) -> Iterator[tuple[str, str, str]]:
    if real:
        yield from sentences(2 * count)
    else:
        for seed in (1, 2, 11):
            yield from ((case.clean, case.right, case.wrong) for case in cases.cases("indirect_object", count=count, seed=seed))


def names(model: Any, real: bool, count: int) -> None:
    """Of the sentences that the model itself gets right; in the real ones only so many."""
    found = {(name, versus): [0, 0] for name, _ in METHODS for versus in (False, True)}
    seconds, asked = dict.fromkeys((name for name, _ in METHODS), 0.0), 0
    shown = 0
    for text, right, wrong in prompts(real, count):
        if real and asked == count:
            break
        shown += 1
        trace = lp.run_trace(model, text, reads=[], gradients=True)
        if int(trace.logits[-1].argmax()) != trace.token_id(right):
            continue
        asked += 1
        for name, options in METHODS:
            for versus in (False, True):
                start = time.perf_counter()
                result = lp.attribute(trace, right, versus=wrong if versus else None, **options)
                seconds[name] += time.perf_counter() - start
                top = int(result.attribution.values.argmax())
                found[name, versus][0] += trace.token_texts[top] == right
                found[name, versus][1] += is_of(trace.token_texts, top, right.strip())
    print(f"\nthe right name first of all tokens, of {asked} sentences that the model gets right out of {shown}; in brackets: a piece of it first")
    for (name, versus), (whole, piece) in found.items():
        print(f"  {name:18s} {'right - wrong' if versus else 'right':14s} {whole:4d} ({piece})   {seconds[name] / (2 * asked):.2f} s")


def is_of(texts: list[str], at: int, name: str) -> bool:
    """Whether a token lies in an occurrence of the name: at the start of a sentence it is without its space, and may be two tokens."""
    start = len("".join(texts[:at]))
    whole, end = "".join(texts), start + len(texts[at])
    places = [place for place in range(len(whole)) if whole.startswith(name, place)]
    return any(start < place + len(name) and place < end for place in places)


def pairs(real: bool, count: int) -> Iterator[tuple[str, str, str, str]]:
    """(clean, corrupt, right, wrong)"""
    if not real:
        for phenomenon in ("indirect_object", "capital", "repeat"):
            yield from ((case.clean, case.corrupt, case.right, case.wrong) for case in cases.cases(phenomenon, count=count))
        return
    for text, right, wrong in sentences(count):
        before, _, after = text.rpartition(wrong)
        yield text, before + right + after, right, wrong


def patching(model: Any, real: bool, count: int) -> None:
    print("\ncorrelation of estimated with real effects: Pearson all / mean of layers, Spearman all / mean of layers")
    for hook in ("resid_pre", "attn_out", "mlp_out", "z"):
        measured: list[np.ndarray] = []
        estimated: dict[str, list[np.ndarray]] = {name: [] for name, _ in ESTIMATES}
        for clean_text, corrupt_text, right, wrong in pairs(real, count):
            clean, corrupt = (lp.run_trace(model, text, reads=[]) for text in (clean_text, corrupt_text))
            metric = (right, wrong)
            try:
                effect = lp.activation_patching(clean, corrupt, hook, metric).effect.values
            except (PromptError, TokenError):  # names of more than one token
                continue
            changed = np.arange(effect.shape[1]) >= (int((clean.tokens != corrupt.tokens).nonzero()[0]) if hook != "z" else 0)
            measured.append(effect[:, changed])
            for name, options in ESTIMATES:
                estimated[name].append(lp.attribution_patching(clean, corrupt, hook, metric, **options).estimate.values[:, changed])
        truth = np.concatenate(measured, axis=1)
        for name, parts in estimated.items():
            guess = np.concatenate(parts, axis=1)
            figures = []
            for correlate in (pearsonr, spearmanr):
                layers = [correlate(a, b).statistic for a, b in zip(guess, truth) if np.ptp(a) and np.ptp(b)]
                figures += [correlate(guess.ravel(), truth.ravel()).statistic, np.mean(layers)]
            print(f"  {hook:10s} {name:6s} {figures[0]:6.3f} {figures[1]:6.3f}   {figures[2]:6.3f} {figures[3]:6.3f}   ({len(measured)} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--count", type=int, default=100, help="sentences")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of prompts (of each of three phenomena on the built-in model)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    model = lp.load_model(str(REAL) if options.real else "storyworld")
    print(lp.model_info(model).name)
    if options.count:
        names(model, options.real, options.count)
    if options.pairs:
        patching(model, options.real, options.pairs)


if __name__ == "__main__":
    main()
