"""Patterns are Hugging Face's ``output_attentions``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.attention import attention_patterns
from lensplorer.trace import run_trace
from tests import tiny

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62, 63, 64, 65]


@pytest.mark.parametrize("name", sorted(tiny.ARCHITECTURES))
def test_patterns_are_hugging_faces(tiny_model, name):
    with torch.inference_mode():
        expected = tiny.hf_model(name)(torch.tensor([IDS]), output_attentions=True).attentions
    found = attention_patterns(run_trace(tiny_model(name), IDS, reads=[attention_patterns])).weight
    np.testing.assert_allclose(found, torch.stack([layer[0] for layer in expected]), atol=2e-5)
