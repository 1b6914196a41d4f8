"""Integrated gradients against Captum's at its defaults, in one run.

    python tests/benchmarks/bench_attribution.py [--shape gpt2] [--tokens 128] [--repeats 3] [--threads 2] [--cpu]

Run by ``make bench``. Must hold: our time <= 0.5 x Captum's, with a completeness of 1 % or better. Captum holds the graph of
all its 50 steps at once: about 10 GB for 128 tokens of GPT-2's shape.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

from tests.benchmarks import shapes

TOKENS = {"gpt2": [128], "smollm2": [64], "qwen2.5-0.5b": [32]}


def seconds(function: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 128; of smollm2 64, of qwen2.5-0.5b 32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true", help="processor time of this process in place of the clock")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = shapes.build(options.shape, Path(folder))
    for n_tokens in options.tokens or TOKENS[options.shape]:
        bench(model, options.shape, n_tokens, options.repeats, time.process_time if options.cpu else time.perf_counter)


def bench(model: Any, shape: str, n_tokens: int, repeats: int, clock: Callable[[], float]) -> None:
    warnings.simplefilter("ignore")
    from captum.attr import LayerIntegratedGradients

    from lensplorer.analyses.attribution import attribute
    from lensplorer.running import run_model
    from lensplorer.trace import make_trace

    tokens = torch.randint(int(model.cfg.d_vocab), (n_tokens,), generator=torch.Generator().manual_seed(1))
    logits = run_model(model, tokens[None]).logits[0]
    target = int(logits[-1].argmax())
    trace = make_trace(model, tokens, logits, {})

    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = attribute(trace, target)

    def captums() -> None:
        explainer = LayerIntegratedGradients(lambda ids: model(ids, return_type="logits")[:, -1], model.hook_embed)
        # Its default baseline, token 0, would be another path; zeros cannot be asked of token ids, and cost the same.
        found["captum"] = explainer.attribute(tokens[None], target=target, return_convergence_delta=True)

    captum_time = seconds(captums, repeats, clock)
    our_time = seconds(ours, repeats, clock)
    ratio = our_time / captum_time
    result = found["ours"]
    moved = float(result.attrs["value"]) - float(result.attrs["baseline_value"])
    completeness, steps = float(result.attrs["completeness"]), result.attrs["steps"]
    off = float(found["captum"][1].abs())
    print(f"integrated gradients, {shape}, {n_tokens} tokens, {torch.get_num_threads()} threads")
    print(f"{'':12s} {'seconds':>8s} {'steps':>6s} {'|Σ - ΔF|':>10s} {'completeness':>13s}")
    print(f"{'lensplorer':12s} {our_time:8.2f} {steps:6d} {abs(moved) * completeness:10.2e} {completeness:13.2%}")
    print(f"{'captum':12s} {captum_time:8.2f} {50:6d} {off:10.2e}")
    holds = ratio <= 0.5 and completeness <= 0.01
    print(f"ratio {ratio:.2f} (must be <= 0.50 with completeness <= 1 %): {'holds' if holds else 'DOES NOT HOLD'}")


if __name__ == "__main__":
    main()
