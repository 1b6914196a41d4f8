"""How long the analyses take, as ratios to Hugging Face's plain forward pass in the same run.

    python tests/benchmarks/bench_analyses.py [--shape gpt2] [--tokens 128 512] [--rounds 7] [--threads 2] [--cpu]

Prints a table: medians, and each target beside what was measured. Rounds are interleaved, so that a busy machine slows both sides alike; on a
very busy one, ``--cpu --threads 1`` counts the processor's time instead of the clock's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

from tests.benchmarks import shapes

Calls = dict[str, Callable[[], Any]]

TOKENS = {"gpt2": [128, 512], "smollm2": [128, 512], "qwen2.5-0.5b": [128]}


def measure(calls: Calls, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if round_ > 0:  # the first warms up
                seconds[name].append(clock() - start)
    return {name: median(values) for name, values in seconds.items()}


def bench(model: Any, plain: Any, n: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    from lensplorer.analyses import attention, lenses, residual, scores
    from lensplorer.trace import run_trace

    ids = torch.randint(4, 300, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    page = [
        scores.token_scores,
        lenses.logit_lens,
        residual.residual_norms,
        residual.residual_decomposition,
        attention.attention_patterns,
        attention.attention_influence,
    ]
    trace = run_trace(model, ids, reads=page)
    weight = model.W_U
    rows, product = torch.randn(n, weight.shape[0]), torch.empty(n, weight.shape[1])

    def forward() -> None:
        with torch.inference_mode():
            plain(torch.tensor([ids]))

    def bare_product() -> None:
        for _ in range(trace.n_layers + 1):
            torch.mm(rows, weight, out=product)  # as bare as can be: no memory is asked for

    def decomposition(unit: str) -> Callable[[], Any]:
        return lambda: residual.residual_decomposition(trace, 50, versus=60, unit=unit)

    views: Calls = {
        "token_scores": lambda: scores.token_scores(trace),
        "next_token": lambda: scores.next_token(trace),
        "token_similarity": lambda: residual.token_similarity(trace),
        "hidden_similarity": lambda: residual.hidden_similarity(trace),
        "residual_norms": lambda: residual.residual_norms(trace),
        "contrast": lambda: lenses.contrast(trace, 50, 60),
        "decomposition by layer": decomposition("layer"),
        "decomposition by head": decomposition("head"),
        "decomposition by neuron": decomposition("neuron"),
        "decomposition by source": decomposition("source"),
        "attention_influence": lambda: attention.attention_influence(trace),
        "attention_by_layer": lambda: attention.attention_by_layer(trace),
    }
    times = measure(
        {
            "Hugging Face forward": forward,
            "trace, reads of the page": lambda: run_trace(model, ids, reads=page),
            **views,
            "lens: bare product": bare_product,
            "logit_lens": lambda: lenses.logit_lens(trace),
        },
        rounds,
        clock,
    )
    times["all token and layer views"] = sum(times[name] for name in views)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes.shape_argument(parser)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 128 512; of qwen2.5-0.5b 128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="processor time of this process in place of the clock")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        model, plain = shapes.build(arguments.shape, Path(folder))
    for n in arguments.tokens or TOKENS[arguments.shape]:
        times = bench(model, plain, n, arguments.rounds, clock)
        forward = times["Hugging Face forward"]
        clock_name = "processor" if arguments.cpu else "clock"
        print(f"\n{arguments.shape}, {n} tokens, {arguments.threads} threads, medians of {arguments.rounds}, {clock_name} time")
        for name, seconds in times.items():
            print(f"  {name:28s} {1e3 * seconds:9.1f} ms  {seconds / forward:7.3f} x forward")
        for name, ratio, target in (
            ("trace with the page's reads / forward", times["trace, reads of the page"] / forward, 1.3),
            ("token and layer views / forward", times["all token and layer views"] / forward, 0.5),
            ("lens grid / bare product", times["logit_lens"] / times["lens: bare product"], 1.5),
        ):
            print(f"  {'met   ' if ratio <= target else 'MISSED'} {name}: {ratio:.2f} (target {target})")


if __name__ == "__main__":
    main()
