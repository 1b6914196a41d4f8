"""The tiny models of ``tests.tiny`` as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import tiny

#: name in tests.tiny → llama.cpp's architecture
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2", "gemma2": "gemma2", "gemma3": "gemma3", "phi3": "phi3"}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of a token


def write(
    path: Path,
    name: str = "llama",
    *,
    hf_model: Any = None,
    architecture: str | None = None,
    settings: dict[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
    add_bos: bool | None = None,
    quantised: bool = False,
    tokenizer: bool = True,
) -> Path:
    """Write the tiny model ``name`` to ``path``; returns it.

    Args:
        hf_model: the model; default: ``tiny.hf_model(name)``.
        architecture: what the file says it is, in place of the true one.
        settings: keys added or changed, without the architecture's name; None takes one out.
        leave_out: tensors left out.
        tensors: tensors added.
        add_bos: what the tokenizer's flag says; None leaves it out.
        quantised: matrices as Q8_0.
        tokenizer: whether it is in the file.
    """
    import gguf

    hf_model = hf_model if hf_model is not None else tiny.hf_model(name)
    config, true_name = hf_model.config, ARCHITECTURES.get(name, name)
    writer = gguf.GGUFWriter(path, architecture or true_name)
    writer.add_string("general.name", "tiny")
    for key, value in (_settings(config, true_name) | (settings or {})).items():
        if value is not None:
            _add(writer, f"{architecture or true_name}.{key}", value)
    if tokenizer:
        _add_tokenizer(writer, config.vocab_size, add_bos)
    arch = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == true_name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, parameter in hf_model.named_parameters():
        tensor = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, key
        if tensor not in leave_out:
            _add_tensor(writer, tensor, _as_llama_cpp(tensor, parameter.detach(), true_name, config), quantised)
    for tensor, values in (tensors or {}).items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(config: Any, architecture: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if architecture == "gpt2":
        return {**said, "feed_forward_length": 4 * config.hidden_size, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    said |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"],
    }
    if architecture in ("qwen3", "gemma2", "gemma3"):
        said |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture in ("llama", "phi3"):
        said |= {"rope.dimension_count": head_dim, "vocab_size": config.vocab_size}
    if architecture in ("gemma2", "gemma3"):
        said |= {"attention.sliding_window": config.sliding_window}
    if architecture == "gemma2":
        said |= {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    return said


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
    add(key, value)


def _add_tokenizer(writer: Any, n_tokens: int, add_bos: bool | None) -> None:
    """That of ``tests.tiny``, byte-level, filled up with tokens that nothing uses."""
    import json

    made = tiny.tokenizer()
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    by_id = {index: token for token, index in made.get_vocab().items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(n_tokens)]
    special = set(made.all_special_tokens) | {"<|user|>", "<|assistant|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else UNUSED if token.startswith("[PAD") else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(made.bos_token_id)
    writer.add_eos_token_id(made.eos_token_id)
    writer.add_pad_token_id(made.pad_token_id)
    writer.add_chat_template(made.chat_template)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)


def _as_llama_cpp(tensor: str, values: torch.Tensor, architecture: str, config: Any) -> np.ndarray:
    """As the converter lays it out: llama's rotary halves interleaved, GPT-2's matrices turned, Gemma's norms one higher."""
    if architecture == "llama" and (".attn_q." in tensor or ".attn_k." in tensor):
        n_heads = config.num_attention_heads if ".attn_q." in tensor else config.num_key_value_heads
        values = values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture == "gpt2" and values.ndim == 2 and tensor.startswith("blk."):
        values = values.T
    if architecture in ("gemma2", "gemma3") and "norm" in tensor:
        values = values + 1
    return values.contiguous().float().numpy()


def _add_tensor(writer: Any, tensor: str, values: np.ndarray, quantised: bool) -> None:
    import gguf

    if quantised and values.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(tensor, values)
