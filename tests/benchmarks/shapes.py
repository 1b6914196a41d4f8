"""Models of the shapes that people use, with random weights: their speed is that of the real ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import lensplorer as lp
from tests import tiny

logging.disable_progress_bar()

#: name → (transformers configuration class, options)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {}),
    "smollm2": (
        "LlamaConfig",
        dict(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
            vocab_size=49152, max_position_embeddings=8192, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-0.5b": (
        "Qwen2Config",
        dict(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
            vocab_size=151936, max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True,
        ),
    ),
}  # fmt: skip


def shape_argument(parser: argparse.ArgumentParser, *, default: str | None = "gpt2") -> None:
    """``--shape``, the same for every benchmark."""
    names = "GPT-2 (124 M parameters), SmolLM2-135M or Qwen2.5-0.5B"
    parser.add_argument("--shape", choices=SHAPES, default=default, help=f"random weights in the shape of {names}; default: {default or 'none'}")


def plain_model(shape: str, *, n_ctx: int = 0) -> Any:
    """The Hugging Face model with its own defaults; its context is ``n_ctx`` where the shape's own is shorter."""
    import transformers

    config_class, options = SHAPES[shape]
    config = getattr(transformers, config_class)(**options)
    config.max_position_embeddings = max(config.max_position_embeddings, n_ctx)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(plain: Any, folder: Path) -> None:
    """Write the model and the tiny tokenizer to ``folder``, where ``load_model`` reads them."""
    plain.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def build(shape: str, folder: Path, *, n_ctx: int = 0) -> tuple[Any, Any]:
    """The same model in lensplorer and in Hugging Face."""
    plain = plain_model(shape, n_ctx=n_ctx)
    save(plain, folder)
    return lp.load_model(str(folder), backend="hooked"), plain
