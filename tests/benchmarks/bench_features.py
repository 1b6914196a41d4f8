"""How long SAE features take, against the model's plain forward pass in the same run: 24,576 features, 128 tokens.

    python tests/benchmarks/bench_features.py [--shape gpt2] [--tokens 128] [--d-sae 24576] [--rounds 7] [--cpu]

Prints the medians and each target beside what was measured, and exits with 1 when one is missed. The two sides take turns, so that a busy
machine slows both alike; ``--cpu`` counts the processor's time instead of the clock's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: the other benchmarks are in tests

import lensplorer as lp
from tests.benchmarks import shapes
from tests.benchmarks.bench_analyses import measure

WHOLE_TARGET, REVISIT_TARGET_MS = 1.5, 5.0


def build(shape: str, folder: Path, d_sae: int) -> tuple[Any, Any, Any]:
    """The model in lensplorer and in Hugging Face, and a random SAE at two thirds of its depth, of which some tens of features fire."""
    from tests.saes import tiny_saes

    model, plain = shapes.build(shape, folder)
    hook = f"blocks.{2 * model.cfg.n_layers // 3}.hook_resid_pre"
    config = {"architecture": "standard", "d_in": model.cfg.d_model, "d_sae": d_sae, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    config["metadata"] = {"hook_name": hook, "model_name": lp.model_info(model).name, "prepend_bos": True, "context_size": 1024}
    tiny_saes.sae_lens()
    from sae_lens import SAE

    sae = SAE.from_dict(config).eval().requires_grad_(False)
    activation = lp.run_trace(model, list(range(4, 68)), reads=[hook])[hook]
    before = activation @ sae.W_enc
    sae.b_enc.data.fill_(-float(before.flatten().kthvalue(int(before.numel() * (1 - 50 / d_sae))).values))  # L0 about 50
    return model, plain, sae


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes.shape_argument(parser)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=24_576)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    options = parser.parse_args()

    from lensplorer.saes import FeatureCache

    with tempfile.TemporaryDirectory() as folder:
        model, plain, sae = build(options.shape, Path(folder) / "model", options.d_sae)
        ids = [0, *torch.randint(4, 300, (options.tokens - 1,), generator=torch.Generator().manual_seed(1)).tolist()]
        reads = lp.sae_reads(model, sae)
        no_cache, cache = FeatureCache(memory_bytes=0, disk_bytes=0), FeatureCache(Path(folder) / "features")

        def forward() -> None:
            with torch.inference_mode():
                plain(torch.tensor([ids]))

        def whole() -> Any:
            return lp.feature_activations(lp.run_trace(model, ids, reads=reads), sae, cache=no_cache)

        trace = lp.run_trace(model, ids, reads=reads)
        lp.feature_activations(trace, sae, cache=cache)
        calls = {
            "plain forward (Hugging Face)": forward,
            "trace alone": lambda: lp.run_trace(model, ids, reads=reads),
            "trace and features": whole,
            "features of a trace": lambda: lp.feature_activations(trace, sae, cache=no_cache),
            "revisit, memory": lambda: lp.feature_activations(trace, sae, cache=cache),
            "revisit, disk": lambda: lp.feature_activations(trace, sae, cache=FeatureCache(Path(folder) / "features")),
        }
        seconds = measure(calls, options.rounds, time.process_time if options.cpu else time.perf_counter)
        for name, value in seconds.items():
            print(f"{name:32s} {1000 * value:9.2f} ms")
        ratio = seconds["trace and features"] / seconds["plain forward (Hugging Face)"]
        revisit = 1000 * max(seconds["revisit, memory"], seconds["revisit, disk"])
        print(f"trace and features / plain forward: {ratio:.2f}  (target {WHOLE_TARGET})")
        print(f"revisit: {revisit:.2f} ms  (target {REVISIT_TARGET_MS})")
        print(f"L0 {whole().attrs['l0']:.0f} of {options.d_sae} features, {options.shape}, {options.tokens} tokens")
        return int(ratio > WHOLE_TARGET or revisit > REVISIT_TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
