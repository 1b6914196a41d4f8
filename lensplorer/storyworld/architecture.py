"""The untrained decoders: a GPT-2 shape and a smaller Qwen2 shape, as transformers builds them."""

from __future__ import annotations

import math

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from lensplorer.storyworld.corpus import CONTEXT


def new_model(name: str, vocabulary: int) -> PreTrainedModel:
    """An untrained decoder of the named architecture."""
    if name == "storyworld":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=vocabulary, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        ))  # fmt: skip
        plant_previous_token_head(model)
        return model
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, max_position_embeddings=CONTEXT, hidden_size=96, intermediate_size=288, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        use_sliding_window=False, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    ))  # fmt: skip


def plant_previous_token_head(model: PreTrainedModel, *, gain: float = 1.6) -> None:
    """Starts positions as sinusoids, and one head of the first block as attention to the position before, which those allow.

    Score of query i and key j: gain² · Σ cos(w · (i - j - 1)) over the fastest frequencies w. Training is free to change both; without
    this start the first thousands of steps go into finding it, since induction cannot begin before, and learned positions blur it.
    """
    width, d_head = model.config.n_embd, model.config.n_embd // model.config.n_head
    frequency = 2 * math.pi / torch.logspace(math.log10(3), math.log10(1024), width // 2)
    angle = torch.arange(CONTEXT)[:, None] * frequency
    model.transformer.wpe.weight.data = 0.02 * math.sqrt(2) * torch.cat([angle.sin(), angle.cos()], dim=1)
    query_key_value = model.transformer.h[0].attn.c_attn.weight.data  # [d_model, 3 d_model]
    query_key_value[:, :d_head] = query_key_value[:, width : width + d_head] = 0
    for k in range(d_head // 2):
        sin, cos, w = k, width // 2 + k, frequency[k]
        query_key_value[sin, width + k] = query_key_value[cos, width + d_head // 2 + k] = gain
        # the query is the position turned back by one step: sin(a - w) = sin a cos w - cos a sin w, and likewise the cosine
        query_key_value[sin, k] = query_key_value[cos, d_head // 2 + k] = gain * w.cos()
        query_key_value[cos, k], query_key_value[sin, d_head // 2 + k] = -gain * w.sin(), gain * w.sin()
