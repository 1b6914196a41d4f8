"""How long a step takes, as a ratio to Hugging Face's own cached step in the same run, on a random GPT-2 of 124 M parameters.

    python tests/benchmarks/bench_stepping.py [--tokens 128 512 1000] [--rounds 15] [--threads 2] [--cpu]

A step is one append with every default activation kept, the scores of the new token, the candidates after it, its column of the logit lens,
its residual norms and the decomposition of the likeliest logit, all of the new position. Hugging Face's is its forward pass over one token with a
``DynamicCache`` and its default attention. Rounds are interleaved, so that a busy machine slows both sides alike; on a very busy one, ``--cpu
--threads 1`` counts the processor's time instead of the clock's.
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

import lensplorer as lp
from lensplorer.analyses import lenses, residual, scores
from lensplorer.stepping import Node, TokenTree, bytes_per_token
from tests.benchmarks.bench_analyses import build

N_CTX = 1024


def views(tree: TokenTree, node: Node) -> None:
    """What the page shows of the new position."""
    new = tree.window(node, last=1)
    scores.token_scores(tree.window(node, last=2))
    candidates = scores.next_token(new)
    lenses.logit_lens(new)
    residual.residual_norms(new)
    residual.residual_decomposition(new, int(candidates.token_id[0]))


class Timer:
    """Medians of named stretches of code, in milliseconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, dict[str, list[float]]()

    def __call__(self, name: str, function: Callable[[], Any]) -> Any:
        start = self.clock()
        result = function()
        self.times.setdefault(name, []).append(1000 * (self.clock() - start))
        return result

    def __getitem__(self, name: str) -> float:
        return median(self.times[name])


def measure(model: Any, plain: Any, n_tokens: int, rounds: int, clock: Callable[[], float]) -> Timer:
    """Steps of both sides from ``n_tokens`` on, and moves in the tree."""
    from transformers import DynamicCache

    timer = Timer(clock)
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(int(model.cfg.d_vocab), (n_tokens + rounds + 4,), generator=generator)
    prompt, rest = ids[:n_tokens].tolist(), ids[n_tokens:].tolist()
    tree = TokenTree(model)
    stem = node = tree.extend(tree.root, prompt)
    past = DynamicCache()
    with torch.inference_mode():
        plain(ids[None, :n_tokens], past_key_values=past, use_cache=True)
    for i in range(rounds + 2):
        if i == 2:  # the first rounds warm up
            timer.times.clear()

        def plain_step(token_id: int = rest[i]) -> Any:
            with torch.inference_mode():
                return plain(torch.tensor([[token_id]]), past_key_values=past, use_cache=True).logits

        expected = timer("Hugging Face", plain_step)
        node = timer("append", lambda start=node, token_id=rest[i]: tree.extend(start, token_id))
        timer("views", lambda at=node: views(tree, at))
        if not torch.allclose(tree.logits(node), expected[0, -1], atol=1e-3):
            raise SystemExit("The two sides disagree.")
    popped = tree.ancestor(node, len(node) - 1)
    for _ in range(7):
        timer("pop", lambda: _look(tree, tree.ancestor(node, len(node) - 1)))
        timer("jump", lambda: _look(tree, stem))
        timer("branch", lambda: _look(tree, tree.extend(popped, rest[rounds + 1])))  # to a continuation that was run before
    for i in range(5):  # another token in the middle, which loads the keys and values of the branch first
        timer("branch and run", lambda i=i: tree.extend(tree.ancestor(stem, n_tokens - 10 * i - 1), rest[-1]))
    return timer


def _look(tree: TokenTree, node: Node) -> Node:
    """Land on a node and look at its position."""
    tree.window(node, last=1)["blocks.0.hook_resid_post"]
    tree.logits(node)
    tree.trace(node)
    return node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        model, plain = build(Path(folder))
    print(f"{torch.get_num_threads()} threads, {'processor' if options.cpu else 'clock'} time, medians in ms; lensplorer {lp.__version__}")
    print(f"{'tokens':>6} {'HF step':>8} {'append':>8} {'views':>8} {'ratio':>6}  {'pop':>6} {'jump':>6} {'branch':>6} {'branch+run':>10}")
    ratios = {}
    for n_tokens in options.tokens:
        rounds = min(options.rounds, N_CTX - n_tokens - 4)
        timer = measure(model, plain, n_tokens, rounds, clock)
        ratio = (timer["append"] + timer["views"]) / timer["Hugging Face"]
        ratios[n_tokens] = ratio
        moves = " ".join(f"{timer[move]:6.2f}" for move in ("pop", "jump", "branch"))
        steps = " ".join(f"{timer[part]:8.1f}" for part in ("Hugging Face", "append", "views"))
        print(f"{n_tokens:6d} {steps} {ratio:6.2f}  {moves} {timer['branch and run']:10.1f}")
    print(f"target: ratio <= 2.0 at each length; measured {max(ratios.values()):.2f} at most")
    first, last = min(ratios), max(ratios)
    print(f"target: ratio at {last} within 1.5 x of that at {first}; measured {ratios[last] / ratios[first]:.2f}")
    print("target: pop, jump and branch under 5 ms")
    for length in (128, 1000):
        print(f"memory per token of {length}, all activations: {bytes_per_token(model, length=length) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
