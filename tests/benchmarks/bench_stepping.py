"""How long a step takes, as a ratio to Hugging Face's own cached step in the same run.

    python tests/benchmarks/bench_stepping.py [--shape gpt2] [--tokens 128 512 1000] [--rounds 15] [--threads 2] [--cpu]

A step is one append of new text with every default activation kept, then what the page shows of the new position, asked in two ways: of windows
of a ``TokenTree``, and of a ``Session`` through the public functions of its whole trace. Hugging Face's is its forward pass over one token with a
``DynamicCache`` and its default attention. The sides take turns, so that a busy machine slows all alike; on a very busy one, ``--cpu --threads 1``
counts the processor's time instead of the clock's.
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
from lensplorer.stepping import Node, TokenTree, bytes_per_token
from tests.benchmarks import shapes

TOKENS = {"gpt2": [128, 512, 1000], "smollm2": [128, 512, 1000, 4000], "qwen2.5-0.5b": [128, 512, 1000]}
TARGETS = {"gpt2": 1.8, "smollm2": 2.0, "qwen2.5-0.5b": 2.0}
WARM = 2  # rounds


def views(tree: TokenTree, node: Node) -> None:
    """What the page shows of the new position."""
    new = tree.window(node, last=1)
    lp.token_scores(tree.window(node, last=2))
    candidates = lp.next_token(new)
    lp.logit_lens(new)
    lp.residual_norms(new)
    lp.residual_decomposition(new, int(candidates.token_id[0]))
    lp.attention_by_layer(new)


def session_step(session: lp.Session, token_id: int) -> None:
    """An append and the same views, as a script asks for them."""
    session.append(token_id)
    trace = session.trace()
    lp.token_scores(trace)
    candidates = lp.next_token(trace)
    lp.logit_lens(session.window(session.position))
    lp.residual_norms(trace)
    lp.residual_decomposition(trace, int(candidates.token_id[0]))
    lp.attention_by_layer(trace)


class Timer:
    """Medians of named stretches of code, in milliseconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, dict[str, list[float]]()

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = self.clock()
        result = function(*arguments)
        self.times.setdefault(name, []).append(1000 * (self.clock() - start))
        return result

    def __getitem__(self, name: str) -> float:
        return median(self.times[name])


def cached_step(plain: Any, prompt: list[int]) -> Callable[[int], torch.Tensor]:
    """Hugging Face's step after ``prompt``: token id → logits. Each goes on from the one before."""
    from transformers import DynamicCache

    past = DynamicCache()

    def step(*ids: int) -> torch.Tensor:
        with torch.inference_mode():
            return plain(torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1).logits[0, -1]

    step(*prompt)
    return step


def measure(model: Any, plain: Any, n_tokens: int, rounds: int, clock: Callable[[], float]) -> Timer:
    """Steps of all sides from ``n_tokens`` on, and moves in the tree."""
    timer = Timer(clock)
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(int(model.cfg.d_vocab), (room(n_tokens, rounds),), generator=generator).tolist()
    prompt, rest = ids[:n_tokens], iter(ids[n_tokens:])
    session = lp.Session(model, prompt)
    tree = session.tree
    stem = node = tree.extend(tree.root, prompt)
    plain_step = cached_step(plain, prompt)
    for i in range(rounds + WARM):
        if i == WARM:
            timer.times.clear()
        token_id = next(rest)
        expected = timer("Hugging Face", plain_step, token_id)
        node = timer("append", tree.extend, node, token_id)
        timer("views", views, tree, node)
        if not torch.allclose(tree.logits(node), expected, atol=1e-3):
            raise SystemExit("The two sides disagree.")
        session.append(token_id)  # it is there: the session goes on from it with a token that is new to both
        token_id = next(rest)
        timer("Hugging Face", plain_step, token_id)
        timer("session", session_step, session, token_id)
        node = tree.extend(node, token_id)
    popped, known = tree.ancestor(node, len(node) - 1), next(rest)
    tree.extend(popped, known)
    for _ in range(7):
        timer("pop", lambda: _look(tree, tree.ancestor(node, len(node) - 1)))
        timer("jump", lambda: _look(tree, stem))
        timer("branch", lambda: _look(tree, tree.extend(popped, known)))  # to a continuation that was run before
    for i in range(5):  # another token in the middle, which loads the keys and values of the branch first
        timer("branch and run", tree.extend, tree.ancestor(stem, n_tokens - 10 * i - 1), known)
    return timer


def room(n_tokens: int, rounds: int) -> int:
    """The tokens that are run, from the prompt on: two each round and one for the branches."""
    return n_tokens + 2 * (rounds + WARM) + 1


def _look(tree: TokenTree, node: Node) -> Node:
    """Land on a node and look at its position."""
    tree.window(node, last=1)["blocks.0.hook_resid_post"]
    tree.logits(node)
    tree.trace(node)
    return node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 128 512 1000; of smollm2 4000 too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu", action="store_true", help="processor time of this process in place of the clock")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    lengths = options.tokens or TOKENS[options.shape]
    with tempfile.TemporaryDirectory() as folder:
        model, plain = shapes.build(options.shape, Path(folder), n_ctx=room(max(lengths), options.rounds))
    clock_name = "processor" if options.cpu else "clock"
    print(f"{options.shape}, {torch.get_num_threads()} threads, {clock_name} time, medians in ms; lensplorer {lp.__version__}")
    print("tokens  HF step   append    views  ratio  session  ratio     pop   jump branch branch+run")
    ratios, session_ratios = {}, {}
    for n_tokens in lengths:
        timer = measure(model, plain, n_tokens, options.rounds, clock)
        step = timer["Hugging Face"]
        ratio, session_ratio = (timer["append"] + timer["views"]) / step, timer["session"] / step
        ratios[n_tokens], session_ratios[n_tokens] = ratio, session_ratio
        moves = " ".join(f"{timer[move]:6.2f}" for move in ("pop", "jump", "branch"))
        steps = f"{step:8.1f} {timer['append']:8.1f} {timer['views']:8.1f} {ratio:6.2f} {timer['session']:8.1f} {session_ratio:6.2f}"
        print(f"{n_tokens:6d} {steps}  {moves} {timer['branch and run']:10.1f}")
    target, first, last = TARGETS[options.shape], min(ratios), max(ratios)
    print(f"target: ratio <= {target} at each length; measured {max(ratios.values()):.2f} at most")
    print(f"the same through Session and the public functions: {max(session_ratios.values()):.2f} at most")
    print(f"target: ratio at {last} within 1.5 x of that at {first}; measured {ratios[last] / ratios[first]:.2f}")
    print("target: pop, jump and branch under 5 ms")
    print(f"kept of each token: {bytes_per_token(model) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
