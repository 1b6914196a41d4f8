"""A layer × position grid against the same number of plain forward passes, batched alike. Required: at most 1.2 times.

python tests/benchmarks/bench_patching.py [model]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import lensplorer as lp
from lensplorer.analyses.metrics import measure
from lensplorer.analyses.patching import _batch_size
from lensplorer.trace import run_model

REQUIRED = 1.2
ROUNDS = 7
CLEAN = "When Peter and Lucy went to the library, Peter gave the kite to"
CORRUPT = "When Peter and Lucy went to the library, Lucy gave the kite to"


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    model = lp.load_model(sys.argv[1] if len(sys.argv) > 1 else "storyworld")
    clean, corrupt = (lp.run_trace(model, text) for text in (CLEAN, CORRUPT))
    metric = (" Lucy", " Peter")
    worst = 0.0
    for hook in ("resid_pre", "attn_out", "z", "pattern"):
        grid = lp.activation_patching(clean, corrupt, hook, metric)
        runs, read = int(grid.attrs["runs"]), measure(corrupt, metric)
        size = _batch_size(corrupt, read)

        def plain(runs: int = runs, size: int = size, read: object = read) -> None:
            for start in range(0, runs, size):
                run_model(model, corrupt.tokens.expand(min(size, runs - start), -1), hooks=read.hooks)

        pairs = [(seconds(lambda hook=hook: lp.activation_patching(clean, corrupt, hook, metric)), seconds(plain)) for _ in range(ROUNDS)]
        ours, theirs = (1e3 * min(side) for side in zip(*pairs))  # the least disturbed round of each
        ratio = ours / theirs
        worst = max(worst, ratio)
        print(f"{hook:>10}: {runs:3d} runs in batches of {size}: {ours:7.1f} ms, plain {theirs:7.1f} ms, {ratio:.2f} x (at most {REQUIRED})")
    return int(worst > REQUIRED)


if __name__ == "__main__":
    sys.exit(main())
