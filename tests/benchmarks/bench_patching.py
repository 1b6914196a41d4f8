"""A layer × position grid against the same number of plain forward passes, batched alike. Required: at most 1.2 times.

    python tests/benchmarks/bench_patching.py [model] [--shape smollm2] [--rounds 7] [--threads 2] [--cpu]

Times are those of the least disturbed round of each side, the rounds interleaved; on a busy machine, ``--cpu --threads 1`` counts the
processor's time instead of the clock's. Without a shape the model is the built-in one, the hardest case: the larger a model, the less is what
patching adds to its passes. A shape gets a few tokens drawn at random, and fewer rounds: its grids take minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import lensplorer as lp
from lensplorer.analyses.metrics import measure
from lensplorer.analyses.patching import _batch_size
from lensplorer.running import run_model
from tests.benchmarks import shapes

REQUIRED = 1.2
CLEAN = "When Peter and Lucy went to the library, Peter gave the kite to"
CORRUPT = "When Peter and Lucy went to the library, Lucy gave the kite to"
BEFORE = "Once upon a time there was a small dog. The dog was happy. " * 6
N_TOKENS = 6  #: of a shape's text: its thirty layers make 150 runs of it


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="storyworld")
    shapes.shape_argument(parser, default=None)
    parser.add_argument("--rounds", type=int, default=None, help="default: 7; of a shape 2")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (2 if options.shape else 7)
    clock = time.process_time if options.cpu else time.perf_counter
    if options.shape:
        with tempfile.TemporaryDirectory() as folder:
            model, _ = shapes.build(options.shape, Path(folder))
        return int(bench(model, *random_texts(model), rounds, clock) > REQUIRED)
    model = lp.load_model(options.model)
    bench(model, CLEAN, CORRUPT, (" Lucy", " Peter"), rounds, clock)  # a grid of 15 ms, of which a tenth is set-up: shown, not required
    return int(bench(model, BEFORE + CLEAN, BEFORE + CORRUPT, (" Lucy", " Peter"), rounds, clock) > REQUIRED)


def random_texts(model: lp.LensModel) -> tuple[list[int], list[int], tuple[int, int]]:
    """Two texts of ids that differ in one token, and the two answers compared."""
    clean = torch.randint(model.cfg.d_vocab, (N_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    return clean, [clean[0], 5, *clean[2:]], (6, 7)


def bench(
    model: lp.LensModel,
    clean_text: str | list[int],
    corrupt_text: str | list[int],
    metric: tuple[str, str] | tuple[int, int],
    rounds: int,
    clock: Callable[[], float],
) -> float:
    """The largest ratio of some grids."""
    clean, corrupt = (lp.run_trace(model, text) for text in (clean_text, corrupt_text))
    print(f"{len(corrupt)} tokens")
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
