"""How long choosing a token takes, beside one cached step of Hugging Face's model.

    python tests/benchmarks/bench_sampling.py [--shape gpt2] [--rounds 30] [--threads 2] [--cpu]

Targets: the whole pipeline, every stage on, over a vocabulary of 151,936, at most 10 % of the step; a constraint mask over that vocabulary at
most 1 ms. Rounds are interleaved, so that a busy machine slows both sides alike; on a very busy one, ``--cpu --threads 1`` counts the
processor's time instead of the clock's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

from tests.benchmarks import shapes
from tests.benchmarks.bench_analyses import measure

D_VOCAB = 151_936
N_PAST = 128


def cached_step(shape: str) -> Callable[[], Any]:
    """One token after 128 others."""
    from transformers import DynamicCache

    model = shapes.plain_model(shape)
    cache = DynamicCache()

    @torch.inference_mode()
    def step() -> None:
        model(torch.tensor([[7]]), past_key_values=cache, use_cache=True)
        cache.crop(-1)

    with torch.inference_mode():
        model(torch.arange(N_PAST)[None], past_key_values=cache, use_cache=True)
    return step


def pipeline_calls() -> dict[str, Callable[[], Any]]:
    from lensplorer.sampling.params import DecodingParams
    from lensplorer.sampling.pipeline import draw_for, pick, run_stages, summarise

    logits = torch.randn(D_VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    history = torch.randint(0, D_VOCAB, (N_PAST,), generator=torch.Generator().manual_seed(1)).tolist()
    allowed = np.random.default_rng(0).random(D_VOCAB) < 0.5
    everything = DecodingParams(temperature=0.7, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5)

    def choose(params: DecodingParams, mask: np.ndarray | None) -> int:
        stages = run_stages(logits, params=params, history=history, n_prompt=28, allowed=mask)
        return pick(stages.p_final, draw_for(0, 0, N_PAST))

    shown = run_stages(logits, params=everything, history=history, n_prompt=28, allowed=allowed)
    return {
        "pipeline, every stage": lambda: choose(everything, allowed),
        "pipeline, balanced": lambda: choose(DecodingParams(), None),
        "pipeline, greedy": lambda: choose(DecodingParams.preset("greedy"), None),
        "waterfall's figures": lambda: summarise(shown),
    }


def mask_call() -> Callable[[], Any]:
    """A mask after another character each time, so that nothing is remembered, over a byte-level BPE of the full size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lensplorer.sampling.constraints import compile_constraint
    from lensplorer.sampling.grammars import Constraint

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: at for at, character in enumerate(alphabet)}
    letters = [character for character in alphabet if character.isascii()]
    pairs = [(one, other) for one in letters for other in letters]
    triples = [(one + other, last) for one, other in pairs for last in letters]
    merges = [*pairs, *triples][: D_VOCAB - 1 - len(vocabulary)]
    vocabulary |= {one + other: len(vocabulary) + at for at, (one, other) in enumerate(merges)}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
    compiled = compile_constraint(Constraint.json_schema(schema), tokenizer, D_VOCAB)
    text = '{"name": "A longer name than most", "age": 12, "kind": "cat"}'
    ids = [vocabulary["\u0120" if character == " " else character] for character in text]
    at = 0

    def mask() -> None:
        nonlocal at
        compiled.allowed(ids[: at % len(ids)])
        at += 1

    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.shape_argument(parser)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="processor time instead of the clock's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    step = f"cached step, {options.shape}"
    seconds = measure({step: cached_step(options.shape), **pipeline_calls(), "constraint mask": mask_call()}, options.rounds, clock)
    print(f"vocabulary {D_VOCAB:,}; {options.threads} threads; {'processor' if options.cpu else 'clock'} time; median of {options.rounds}")
    for name, value in seconds.items():
        print(f"{name:24} {1e3 * value:8.3f} ms {100 * value / seconds[step]:7.1f} % of the step")
    print(f"pipeline <= 10 % of the step: {'yes' if seconds['pipeline, every stage'] <= 0.1 * seconds[step] else 'NO'}")
    print(f"constraint mask <= 1 ms:      {'yes' if seconds['constraint mask'] <= 1e-3 else 'NO'}")


if __name__ == "__main__":
    main()
