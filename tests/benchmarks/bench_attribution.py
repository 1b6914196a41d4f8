"""Integrated gradients against Captum's at its defaults, and the local linear model against a plain forward pass, in one run.

    python tests/benchmarks/bench_attribution.py [--shape gpt2] [--tokens 128] [--repeats 3] [--threads 2] [--cpu] [--linear]

Run by ``make bench``. Must hold: our time <= 0.5 x Captum's, with a completeness of 1 % or better; linear attribution <= 3.5 x a forward pass at 128
and 512 tokens, and memory for its graph <= 2 x that of ``gradients=True``. Captum holds the graph of all its 50 steps at once: about 10 GB for 128
tokens of GPT-2's shape. ``--linear``: without Captum.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

from tests.benchmarks import shapes

TOKENS = {"gpt2": [128], "smollm2": [64], "qwen2.5-0.5b": [32]}

LINEAR_TOKENS = (128, 512)


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
    parser.add_argument("--linear", action="store_true", help="the local linear model alone")
    parser.add_argument("--peak", choices=("True", "linear"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = shapes.build(options.shape, Path(folder))
    if options.peak:
        measure_peak(model, options.tokens[0], options.peak)
        return
    clock = time.process_time if options.cpu else time.perf_counter
    for n_tokens in options.tokens or LINEAR_TOKENS:
        bench_linear(model, options.shape, n_tokens, options.repeats, clock)
    for n_tokens in () if options.linear else options.tokens or TOKENS[options.shape]:
        bench(model, options.shape, n_tokens, options.repeats, clock)


def peak(shape: str, n_tokens: int, gradients: bool | str) -> float:
    """What run and backward pass take of memory beside the model, in MB: in a process of its own, since memory freed before would hide it."""
    command = [sys.executable, "-W", "ignore", __file__, "--shape", shape, "--tokens", str(n_tokens), "--peak", str(gradients)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(model: Any, n_tokens: int, gradients: str) -> None:
    """Prints it."""
    from lensplorer.analyses.attribution import attribute
    from lensplorer.trace import run_trace

    tokens = torch.randint(int(model.cfg.d_vocab), (n_tokens,), generator=torch.Generator().manual_seed(1))
    gc.collect()
    process, highest, over = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    trace = run_trace(model, tokens, reads=[], gradients=gradients if gradients == "linear" else True)
    attribute(trace, 7, method="linear" if gradients == "linear" else "input_x_gradient")
    over.set()
    thread.join()
    print((highest - before) / 1e6)


def bench_linear(model: Any, shape: str, n_tokens: int, repeats: int, clock: Callable[[], float]) -> None:
    from lensplorer.analyses.attribution import attribute
    from lensplorer.running import run_model
    from lensplorer.trace import make_trace, run_trace

    tokens = torch.randint(int(model.cfg.d_vocab), (n_tokens,), generator=torch.Generator().manual_seed(1))
    plain = make_trace(model, tokens, run_model(model, tokens[None]).logits[0], {})
    target = int(plain.logits[-1].argmax())

    def from_the_run_on(gradients: bool | str, method: str) -> None:
        attribute(run_trace(model, tokens, reads=[], gradients=gradients), target, method=method)

    forward = seconds(lambda: run_model(model, tokens[None]), repeats, clock)
    again = seconds(lambda: attribute(plain, target, method="linear"), repeats, clock) / forward
    whole = seconds(lambda: from_the_run_on("linear", "linear"), repeats, clock) / forward
    true = seconds(lambda: from_the_run_on(True, "input_x_gradient"), repeats, clock) / forward
    memory = {gradients: peak(shape, n_tokens, gradients) for gradients in (True, "linear")}
    completeness = float(attribute(plain, target, method="linear").attrs["completeness"])
    print(f"the local linear model, {shape}, {n_tokens} tokens, {torch.get_num_threads()} threads: forward pass {forward:.2f} s")
    print(f"linear attribution of a trace {again:.2f} x, from the run on {whole:.2f} x; input x gradient from the run on {true:.2f} x")
    print(f"memory at the peak of run and backward pass: {memory['linear']:.0f} MB, with gradients=True {memory[True]:.0f} MB")
    print(f"completeness {completeness:.1e}")
    holds = max(again, whole) <= 3.5 and completeness <= 1e-5 and 0 < memory["linear"] <= 2 * memory[True]
    print(f"must be <= 3.5 x, and memory <= 2 x that of gradients=True: {'holds' if holds else 'DOES NOT HOLD'}")


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
