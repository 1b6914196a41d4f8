"""How long a long prompt takes to open, as a ratio to Hugging Face's plain forward pass in the same run, and what it takes in memory.

    python tests/benchmarks/bench_opening.py [--shape gpt2] [--tokens 1000 4000] [--rounds 3] [--threads 2]

Each opening starts from nothing: a ``Session`` with all that the page reads, the scores of every token and the candidates after the last one. "All
panels" adds what the panels of a new page ask: the lens of the last positions, the decomposition of the likeliest logit and the attention of
the last position. Hugging Face's side is its forward pass over the same tokens without gradients, with its default attention.

The peak of memory is that of an opening in a process of its own, above what the loaded model takes (Linux only).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

import lensplorer as lp
from lensplorer.dashboard.colouring import available_views
from lensplorer.dashboard.panels import needed_reads
from lensplorer.dashboard.panels.lenses import WINDOW
from lensplorer.stepping import TokenTree
from tests.benchmarks import shapes
from tests.benchmarks.bench_analyses import measure
from tests.benchmarks.bench_stepping import Timer

TOKENS = {"gpt2": [1000], "smollm2": [1000, 4000], "qwen2.5-0.5b": [1000]}
MOST_MOVE, MOST_KEPT, MOST_PEAK = 5.0, 0.15, 1.5  # ms, MB a token, GB
N_MOVES = 7


def page_reads() -> list[Any]:
    """What each trace of the page holds."""
    return [analysis for view in available_views().values() for analysis in view.analyses() or ()] + needed_reads()


def open_tree(model: Any, ids: list[int]) -> TokenTree:
    """The run alone."""
    tree = TokenTree(model, reads=page_reads())
    tree.extend(tree.root, ids)
    return tree


def open_strip(model: Any, ids: list[int]) -> lp.Session:
    """The tokens' colours and the candidates."""
    session = lp.Session(model, ids, reads=page_reads())
    session.along(lp.token_scores, last=2)
    lp.next_token(session.window(session.position))
    return session


def open_panels(model: Any, ids: list[int]) -> lp.Session:
    """The same, and what the panels of a new page show."""
    session = open_strip(model, ids)
    last = session.window(session.position)
    session.along(lp.logit_lens, first=max(0, len(ids) - WINDOW))
    lp.residual_decomposition(last, int(last.logits[-1].argmax()))
    lp.attention_by_layer(last)
    return session


def moves(session: lp.Session) -> Timer:
    """Back and forth between prompts that were run before, each time as far as the candidates."""
    timer = Timer(time.perf_counter)
    token_id = 5
    session.append(token_id)
    candidates(session)
    for _ in range(N_MOVES):
        timer("pop", lambda: (session.pop(), candidates(session)))
        timer("jump", lambda: (session.pop(len(session.ids) // 2), candidates(session)))
        session.undo()
        timer("branch", lambda: (session.branch(), session.append(token_id), candidates(session)))
        session.remove()
        session.append(token_id)
    return timer


def candidates(session: lp.Session) -> Any:
    return lp.next_token(session.window(session.position))


def peak(opening: Callable[[Any, list[int]], Any], folder: str, ids: list[int], threads: int) -> float:
    """The most memory that an opening takes above the model's, in GB. For a process of its own."""
    torch.set_num_threads(threads)
    model = lp.load_model(folder, backend="hooked")
    opening(model, ids[:8])  # what is imported and made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = _memory("VmRSS")
    opening(model, ids)
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    """A figure of this process, in GB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e9


def bench(model: Any, plain: Any, folder: str, n: int, rounds: int) -> None:
    ids = torch.randint(int(model.cfg.d_vocab), (n,), generator=torch.Generator().manual_seed(1)).tolist()

    def forward() -> None:
        with torch.inference_mode():
            plain(torch.tensor([ids]))

    openings = {"tree alone": open_tree, "strip and candidates": open_strip, "all panels": open_panels}
    calls = {name: lambda opening=opening: opening(model, ids) for name, opening in openings.items()}
    times = measure({"Hugging Face forward": forward, **calls}, rounds, time.perf_counter)
    ratios = {name: seconds / times["Hugging Face forward"] for name, seconds in times.items()}
    for name, seconds in times.items():
        print(f"  {name:24s} {seconds:8.2f} s  {ratios[name]:6.2f} x forward")
    session = open_panels(model, ids)
    kept = session.tree.n_bytes / n / 1e6
    took = moves(session)
    del session
    found = {
        "strip and candidates / forward": (ratios["strip and candidates"], 2.0 if n <= 1000 else 2.5),
        "all panels / forward": (ratios["all panels"], 3.0),
        "kept, MB a token": (kept, MOST_KEPT),
        **{f"{move}, ms": (took[move], MOST_MOVE) for move in ("pop", "jump", "branch")},
    }
    if sys.platform == "linux":
        for name in ("strip and candidates", "all panels"):
            with get_context("spawn").Pool(1) as process:
                found[f"peak of {name}, GB"] = (process.apply(peak, (openings[name], folder, ids, torch.get_num_threads())), MOST_PEAK)
    for name, (value, target) in found.items():
        print(f"  {'met   ' if value <= target else 'MISSED'} {name}: {value:.2f} (target {target})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1000; of smollm2 4000 too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = options.tokens or TOKENS[options.shape]
    with tempfile.TemporaryDirectory() as folder:
        model, plain = shapes.build(options.shape, Path(folder), n_ctx=max(lengths) + 1)
        for n in lengths:
            print(f"\n{options.shape}, {n} tokens, {options.threads} threads, medians of {options.rounds}")
            bench(model, plain, folder, n, options.rounds)


if __name__ == "__main__":
    main()
