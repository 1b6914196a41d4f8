"""How many prompts a second a batch does, as a ratio to Hugging Face's bare batched forward pass in the same run.

    python tests/benchmarks/bench_batch.py [--shape gpt2] [--prompts 64] [--rounds 3] [--threads 2] [--cpu]

Both sides run the same prompts in the same groups, sorted by length and padded at the right. Hugging Face's side computes logits and keeps nothing;
this one also makes a trace of each prompt, runs the analyses and writes Parquet. Rounds are
interleaved, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

import lensplorer as lp
from lensplorer.batch.forward import groups, tokens_per_pass
from lensplorer.batch.plan import make_plan
from lensplorer.batch.runner import Runner
from tests.benchmarks import shapes
from tests.benchmarks.bench_analyses import measure

CASES = {
    "token_scores": ["token_scores"],
    "token_scores, next_token, residual_norms": ["token_scores", {"name": "next_token", "k": 10}, "residual_norms"],
}


def bare(plain: Any, prompts: list[list[int]], tokens: int) -> None:
    """Hugging Face's forward pass over the same groups."""
    with torch.inference_mode():
        for group in groups([len(ids) for ids in prompts], pad=True, tokens=tokens):
            longest = max(len(prompts[at]) for at in group)
            rows = [prompts[at] + [0] * (longest - len(prompts[at])) for at in group]
            mask = [[1] * len(prompts[at]) + [0] * (longest - len(prompts[at])) for at in group]
            plain(torch.tensor(rows), attention_mask=torch.tensor(mask), use_cache=False)


def bench(model: Any, plain: Any, name: str, folder: Path, prompts: list[list[int]], rounds: int, clock: Callable[[], float]) -> float:
    """The ratio of throughputs, and a line that says it."""
    source, out = folder / "prompts.jsonl", folder / "out"
    source.write_text("\n".join(json.dumps({"prompt": ids}) for ids in prompts))
    runner = Runner(make_plan(CASES[name], {}), model=model)
    tokens = tokens_per_pass(model, runner.reads, max(map(len, prompts)))

    def batch() -> None:
        shutil.rmtree(out, ignore_errors=True)
        report = lp.run_batch(source, out, analyses=CASES[name], loaded=model)
        if report.errors or report.prompts != len(prompts):
            raise SystemExit(f"The batch failed: {report}")

    times = measure({"bare": lambda: bare(plain, prompts, tokens), "batch": batch}, rounds, clock)
    ratio = times["bare"] / times["batch"]
    rates = {side: len(prompts) / seconds for side, seconds in times.items()}
    print(f"{name:42s} {rates['bare']:10.1f} {rates['batch']:10.1f} {ratio:6.2f}")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true", help="processor time of this process in place of the clock")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 97, (options.prompts,), generator=generator).tolist()
    prompts = [torch.randint(4, 300, (length,), generator=generator).tolist() for length in lengths]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, plain = shapes.build(options.shape, folder / "model")
        clock_name = "processor" if options.cpu else "clock"
        print(f"{options.shape}, {torch.get_num_threads()} threads, {clock_name} time; {options.prompts} prompts of 16 to 96 tokens")
        print(f"{'prompts a second':42s} {'bare HF':>10} {'batch':>10} {'ratio':>6}")
        ratios = [bench(model, plain, case, folder, prompts, options.rounds, clock) for case in CASES]
    print(f"target: throughput >= 0.7 x bare Hugging Face; measured {min(ratios):.2f} at least")


if __name__ == "__main__":
    main()
