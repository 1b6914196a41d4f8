"""Tiny models of every architecture in the table, with random weights, in Hugging Face format, made where a test asks for them.

Every parameter is random, norms and biases included: a model whose norm weights are all one cannot show that a norm was forgotten.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

CORPUS = ["the cat sat on the mat and the dog ran to the shop", "Mary and John went to the shop, John gave a book to Mary", "1 + 2 = 3 é ü 日本 🙂"]
D_VOCAB = 320
N_CTX = 64

_COMMON: dict[str, Any] = dict(vocab_size=D_VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=1)
_WIDE: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=N_CTX, **_COMMON
)
_GQA: dict[str, Any] = dict(num_key_value_heads=2, **_WIDE)
_GEMMA: dict[str, Any] = dict(head_dim=8, **_GQA)
_GEMMA_WINDOWED: dict[str, Any] = dict(query_pre_attn_scalar=8, sliding_window=8, **_GEMMA)

#: name → (transformers model class, configuration class, options)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=32, n_layer=3, n_head=4, n_positions=N_CTX, **_COMMON)),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(use_parallel_residual=False, rotary_pct=0.5, **_WIDE)),
    "neox-parallel": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(use_parallel_residual=True, rotary_pct=0.5, **_WIDE)),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        dict(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=N_CTX, **_COMMON
        ),
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "llama-biases": ("LlamaForCausalLM", "LlamaConfig", dict(attention_bias=True, mlp_bias=True, **_GQA)),
    "llama-linear-rope": ("LlamaForCausalLM", "LlamaConfig", dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, **_GQA)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen2-window": ("Qwen2ForCausalLM", "Qwen2Config", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1, **_GQA)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", dict(head_dim=8, **_GQA)),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=8, **_GQA)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dict(sliding_window=None, **_GQA)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GEMMA),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA_WINDOWED),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA_WINDOWED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GQA),
    "bloom": ("BloomForCausalLM", "BloomConfig", dict(hidden_size=32, n_layer=3, n_head=4, **_COMMON)),
}


@cache
def tokenizer() -> Any:
    """A byte-level BPE with a few merges, a BOS/EOS and a chat template: any text, 320 ids at most."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB - 2,
        special_tokens=["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>")
    made.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    return made


def hf_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """The Hugging Face model of the architecture ``name``, every parameter random, eager attention."""
    import transformers

    model_class, config_class, options = ARCHITECTURES[name]
    config = getattr(transformers, config_class)(**{**options, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.ndim == 1 and parameter_name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm_weight else 0.2 * noise)
    return model.eval()


def save(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save the tiny model and the tokenizer under ``folder``; returns it."""
    hf_model(name, seed=seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
