"""A layer × position grid against the same number of plain forward passes, batched alike. Required: at most 1.2 times.

python tests/benchmarks/bench_patching.py [model] [--rounds 7] [--threads 2] [--cpu]

Times are those of the least disturbed round of each side, the rounds interleaved; on a busy machine, ``--cpu --threads 1`` counts the
processor's time instead of the clock's. The model is the built-in one, whose names are one token each; it is also the hardest case: the larger a
model, the less is what patching adds to its passes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

import lensplorer as lp
from lensplorer.analyses.metrics import measure
from lensplorer.analyses.patching import _batch_size
from lensplorer.running import run_model

REQUIRED = 1.2
CLEAN = "When Peter and Lucy went to the library, Peter gave the kite to"
CORRUPT = "When Peter and Lucy went to the library, Lucy gave the kite to"
BEFORE = "Once upon a time there was a small dog. The dog was happy. " * 6


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="storyworld")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    model = lp.load_model(options.model)
    bench(model, "", options.rounds, clock)  # a grid of 15 ms, of which 1 to 2 ms to set up and label are a tenth: shown, not required
    return int(bench(model, BEFORE, options.rounds, clock) > REQUIRED)


def bench(model: lp.LensModel, before: str, rounds: int, clock: Callable[[], float]) -> float:
    """The largest ratio of some grids."""
    clean, corrupt = (lp.run_trace(model, before + text) for text in (CLEAN, CORRUPT))
    print(f"{len(corrupt)} tokens")
    metric = (" Lucy", " Peter")
    worst = 0.0
    for hook in ("resid_pre", "attn_out", "z", "pattern"):
        grid = lp.activation_patching(clean, corrupt, hook, metric)
        runs, read = int(grid.attrs["runs"]), measure(corrupt, metric)
        size = _batch_size(corrupt, read)

        def plain(runs: int = runs, size: int = size, read: object = read) -> None:
            for start in range(0, runs, size):
                run_model(model, corrupt.tokens.expand(min(size, runs - start), -1), hooks=read.hooks)

        def patched(hook: str = hook) -> None:
            lp.activation_patching(clean, corrupt, hook, metric)

        pairs = [(seconds(patched, clock), seconds(plain, clock)) for _ in range(rounds)]
        ours, theirs = (1e3 * min(side) for side in zip(*pairs))  # the least disturbed round of each
        ratio = ours / theirs
        worst = max(worst, ratio)
        print(f"{hook:>10}: {runs:3d} runs in batches of {size}: {ours:7.1f} ms, plain {theirs:7.1f} ms, {ratio:.2f} x (at most {REQUIRED})")
    return worst


if __name__ == "__main__":
    sys.exit(main())
