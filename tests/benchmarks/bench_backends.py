"""How long one cached step of each backend takes, as a ratio to Hugging Face's own in the same run.

    python tests/benchmarks/bench_backends.py [--shape gpt2 smollm2 | --model FOLDER] [--tokens 128 1000] [--rounds 15] [--threads 2] [--cpu]

A step is the model's run over one token after ``--tokens`` others, with every default activation recorded; what a ``TokenTree`` does besides is
in ``bench_stepping``. Hugging Face's is its forward pass with a ``DynamicCache`` and its default attention. Rounds are interleaved; on a busy
machine, where threads wait for each other, ``--cpu --threads 1`` counts the processor's time instead of the clock's.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the tiny tokenizer is in tests

import lensplorer as lp
from lensplorer.kvcache import WorkingCache
from lensplorer.trace import resolve_reads, run_model
from tests.benchmarks import shapes

CHUNK = 500  # tokens of the prompt at once: attention of all to all is not what is measured


def measure(models: dict[str, Any], plain: Any, n_tokens: int, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of a step of each."""
    from transformers import DynamicCache

    ids = torch.randint(plain.config.vocab_size, (1, n_tokens + rounds + 2), generator=torch.Generator().manual_seed(n_tokens))
    past, caches = DynamicCache(), {name: WorkingCache(model).past for name, model in models.items()}
    reads = {name: resolve_reads(model, None) for name, model in models.items()}
    with torch.inference_mode():
        plain(ids[:, :n_tokens], past_key_values=past, use_cache=True, logits_to_keep=1)
    for name, model in models.items():
        for start in range(0, n_tokens, CHUNK):
            run_model(model, ids[:, start : min(start + CHUNK, n_tokens)], past=caches[name], start=start)
    times: dict[str, list[float]] = {name: [] for name in ("Hugging Face", *models)}
    for at in range(n_tokens, ids.shape[1]):
        token = ids[:, at : at + 1]
        start_time = clock()
        with torch.inference_mode():
            expected = plain(token, past_key_values=past, use_cache=True).logits
        times["Hugging Face"].append(clock() - start_time)
        for name, model in models.items():
            start_time = clock()
            found = run_model(model, token, reads=reads[name], past=caches[name], start=at)
            times[name].append(clock() - start_time)
            if not torch.allclose(found.logits, expected, atol=2e-3):
                raise SystemExit(f"{name} and Hugging Face disagree.")
    return {name: 1000 * median(seconds[2:]) for name, seconds in times.items()}  # the first rounds warm up


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(shapes.SHAPES), default=["gpt2", "smollm2"])
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face's format, instead of the shapes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 1000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"{torch.get_num_threads()} threads, {'processor' if options.cpu else 'clock'} time, medians in ms; lensplorer {lp.__version__}")
    for shape in [options.model] if options.model else options.shape:
        with tempfile.TemporaryDirectory() as scratch:
            folder = str(options.model or scratch)
            if not options.model:
                shapes.save(shapes.plain_model(shape), Path(scratch))
            plain = AutoModelForCausalLM.from_pretrained(folder).eval()
            models = {backend: lp.load_model(folder, backend=backend) for backend in ("hooked", "bridge")}
        for n_tokens in options.tokens:
            rounds = min(options.rounds, plain.config.max_position_embeddings - n_tokens - 2)
            times = measure(models, plain, n_tokens, rounds, clock)
            ratios = ", ".join(f"{name} {times[name]:.1f} ({times[name] / times['Hugging Face']:.2f} x)" for name in models)
            print(f"{shape}, {n_tokens} tokens: Hugging Face {times['Hugging Face']:.1f}, {ratios}", flush=True)


if __name__ == "__main__":
    main()
