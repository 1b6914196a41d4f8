"""Hugging Face's hidden states are the rows of the residual stream, and its logits the last row of the lens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.lenses import logit_lens
from lensplorer.analyses.residual import residual_norms, residual_rows
from lensplorer.analyses.unembedding import Unembedding
from lensplorer.trace import run_trace
from tests.tiny import ARCHITECTURES

TEXT = "the cat sat on the mat"


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residual_rows_are_hugging_faces_hidden_states(tiny_model, tiny_folder, name, processing):
    from transformers import AutoModelForCausalLM

    trace = run_trace(tiny_model(name, processing=processing), TEXT, reads=[logit_lens])
    peer = AutoModelForCausalLM.from_pretrained(tiny_folder(name), attn_implementation="eager").eval()
    with torch.inference_mode():
        ran = peer(trace.tokens[None], output_hidden_states=True)
    rows = residual_rows(trace)
    assert len(ran.hidden_states) == len(rows)
    for layer, hidden in enumerate(ran.hidden_states[:-1]):
        torch.testing.assert_close(rows[layer], hidden[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(residual_norms(trace).norm[layer], hidden[0].norm(dim=-1), rtol=1e-4)
    if processing == "none":  # its last state is already normed, gain included
        torch.testing.assert_close(Unembedding(trace.model).normed(rows[-1]), ran.hidden_states[-1][0], rtol=1e-4, atol=1e-4)
    log_p = ran.logits[0].log_softmax(-1)
    target = int(log_p[-1].argmax())
    np.testing.assert_allclose(np.log(logit_lens(trace, tokens=[target]).probability[-1, :, 0]), log_p[:, target], atol=2e-4)
