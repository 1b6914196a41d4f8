"""Every attribution method on prompts whose answers are known: which one finds the tokens that the prediction rests on, and what it costs.

    python tests/benchmarks/bench_faithfulness.py [--model storyworld] [--prompts 100] [--minutes 0] [--bound 20] [--methods NAME ...]
        [--removed-to mean] [--threads 1]

F is the logit of the right answer minus that of a wrong one. Tokens are replaced by the baseline in the order of their scores (deletion), and put
back in that order (insertion); an area is the mean of F along the curve, in logits: a faithful method has a small one under deletion and a large
one under insertion. "against linear" is the mean difference of (insertion - deletion) to ``linear``, prompt by prompt, and its
standard error. Prompts that the model gets wrong are left out. With ``--minutes`` it ends after the prompt on which the time is up, and
says how many there were. ``deeplift`` is not complete on these models and refuses, ``feature_ablation`` is ``occlusion``.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import lensplorer as lp
from lensplorer.analyses.attribution import GRADIENT_METHODS
from lensplorer.analyses.question import BASELINES
from lensplorer.errors import TokenError
from lensplorer.storyworld import cases

#: name in the table → options of ``attribute``
METHODS: dict[str, dict[str, Any]] = {
    "linear, gate": {"method": "linear", "rule": "gate"},
    "linear, half": {"method": "linear", "rule": "half"},
    "saliency": {"method": "saliency"},
    "input_x_gradient": {"method": "input_x_gradient"},
    "input_x_gradient_norm": {"method": "input_x_gradient_norm"},
    "integrated_gradients": {"method": "integrated_gradients"},
    "occlusion": {"method": "occlusion"},
    "attention": {"method": "attention"},
    "rollout": {"method": "rollout"},
    "gradient_shap": {"method": "gradient_shap"},
    "lime": {"method": "lime"},
    "kernel_shap": {"method": "kernel_shap"},
}

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow",
    "England": "London", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Ireland": "Dublin", "Canada": "Ottawa", "Cuba": "Havana",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Hungary": "Budapest", "Turkey": "Ankara", "Norway": "Oslo", "Iran": "Tehran",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("good", "bad"), ("day", "night"), ("black", "white"), ("high", "low"),
    ("fast", "slow"), ("old", "young"), ("rich", "poor"), ("hard", "soft"), ("open", "closed"), ("true", "false"), ("light", "dark"),
    ("early", "late"), ("happy", "sad"), ("strong", "weak"), ("wet", "dry"), ("first", "last"),
)  # fmt: skip
NAMES = ("Mary", "John", "Tom", "Anna", "Peter", "Lucy", "Paul", "Sarah", "James", "Emma")
GIFTS = (("store", "drink"), ("park", "ball"), ("school", "book"), ("beach", "towel"))
NEXT = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday", "January February March April May June July August",
    "one two three four five six seven eight nine ten", "first second third fourth fifth sixth seventh",
)  # fmt: skip

Known = tuple[str, str, str]  #: prompt, right answer, wrong answer


def general_prompts() -> Iterator[Known]:
    """Of the world at large, a kind after the other."""
    countries = list(CAPITALS)
    capitals = [(f"The capital of {a} is", f" {CAPITALS[a]}", f" {CAPITALS[b]}") for a, b in zip(countries, [*countries[1:], countries[0]])]
    opposites = [(f"The opposite of {a} is", f" {b}", f" {a}") for a, b in chain(OPPOSITES, ((b, a) for a, b in OPPOSITES))]
    pairs = [(NAMES[i], NAMES[(i + step) % len(NAMES)]) for step in (1, 3, 4) for i in range(len(NAMES))]
    gifts = [
        (f"When {a} and {b} went to the {place}, {b} gave a {thing} to", f" {a}", f" {b}") for (a, b), (place, thing) in zip(pairs, cycle(GIFTS))
    ]
    lists = [words.split() for words in NEXT]
    series = [(", ".join(words[i : i + 3]) + ",", f" {words[i + 3]}", f" {words[i + 2]}") for words in lists for i in range(len(words) - 3)]
    for group in zip_longest(capitals, opposites, gifts, series):
        yield from (known for known in group if known is not None)


def storyworld_prompts() -> Iterator[Known]:
    """Of the toy world, a phenomenon after the other."""
    for group in zip(*(cases.cases(phenomenon, count=1000, seed=3) for phenomenon in cases.PHENOMENA)):
        yield from ((case.clean, case.right, case.wrong) for case in group)


def known_by(model: lp.LensModel, prompts: Iterator[Known]) -> Iterator[tuple[lp.Trace, int, int]]:
    """A trace with gradients of each prompt whose right answer is what the model says next, and the two answers."""
    for prompt, *answers in prompts:
        trace = lp.run_trace(model, prompt, reads=[], gradients=True)
        try:
            right, wrong = map(trace.token_id, answers)
        except TokenError:  # not one token
            continue
        if int(trace.logits[-1].argmax()) == right:
            yield trace, right, wrong


def measure(
    trace: lp.Trace, right: int, wrong: int, methods: list[str], bound: float, removed_to: str | None
) -> dict[str, tuple[float, float, float, float]]:
    """Deletion area, insertion area, seconds and completeness of each method; NaN where it has none."""
    found = {}
    for name in methods:
        options = METHODS[name]
        if options["method"] == "integrated_gradients":
            options = options | {"max_seconds": bound}
        # What a method needs is a part of its cost: those of the trace's own graph pay for that run.
        start = time.perf_counter()
        own = lp.run_trace(trace.model, trace.tokens.tolist(), reads=[], gradients=True) if options["method"] in GRADIENT_METHODS else trace
        scores = lp.attribute(own, right, versus=wrong, **options)
        took = time.perf_counter() - start
        curves = lp.faithfulness_curves(trace, scores, n_random=0, baseline=removed_to)
        found[name] = (curves.attrs["deletion_area"], curves.attrs["insertion_area"], took, float(scores.attrs.get("completeness", np.nan)))
    curves = lp.faithfulness_curves(trace, scores, n_random=8, baseline=removed_to)
    found["random order"] = (curves.attrs["random_deletion_area"], curves.attrs["random_insertion_area"], np.nan, np.nan)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storyworld")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0, help="end after so many; 0: do not")
    parser.add_argument("--bound", type=float, default=20, help="max_seconds of integrated gradients")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--removed-to", choices=BASELINES, help="what removed tokens become; default: the methods' own baseline")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    model = lp.load_model(options.model)
    prompts = storyworld_prompts() if lp.model_info(model).name == "storyworld" else general_prompts()
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    methods = ["linear, gate", *(name for name in options.methods if name != "linear, gate")]
    rows = []
    for trace, right, wrong in islice(known_by(model, prompts), options.prompts):
        rows.append(measure(trace, right, wrong, methods, options.bound, options.removed_to))
        if time.monotonic() > until:
            break
    show(options.model, rows)


def show(model: str, rows: list[dict[str, tuple[float, float, float, float]]]) -> None:
    """The table, the most faithful first."""
    print(f"{model}, {len(rows)} prompts that it gets right, {torch.get_num_threads()} threads")
    print("| method | deletion | insertion | against linear | seconds | completeness: median, worst | within 1 % |")
    print("|---|---|---|---|---|---|---|")
    numbers = {name: np.array([row[name] for row in rows]) for name in rows[0]}  # [prompt, 4]
    gain = {name: found[:, 1] - found[:, 0] for name, found in numbers.items()}
    for name in sorted(numbers, key=lambda name: -gain[name].mean()):
        deletion, insertion, took, complete = numbers[name].T
        against = gain[name] - gain["linear, gate"]
        spread = against.std(ddof=1) / np.sqrt(len(against)) if len(against) > 1 else np.nan
        known = not np.isnan(complete).all()
        identity = f"{np.median(complete):.1e}, {complete.max():.1e} | {np.mean(complete <= 0.01):.0%}" if known else "– | –"
        print(f"| {name} | {deletion.mean():.2f} | {insertion.mean():.2f} | {against.mean():+.2f} ± {spread:.2f} | {took.mean():.3f} | {identity} |")


if __name__ == "__main__":
    main()
