"""The local linear model of a real model: complete, cheap, and it finds the name that the sentence is about."""

from __future__ import annotations

import pytest
import torch

import lensplorer as lp
from tests.real.sentences import sentences

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.mark.parametrize("rule", ["gate", "half"])
def test_no_bit_changes_and_every_cut_carries_the_logit(real, real_bridge, rule):
    for model in (real, real_bridge):
        trace = lp.run_trace(model, PROMPT, reads=[])
        assert torch.equal(lp.run_trace(model, PROMPT, reads=[], gradients="linear", rule=rule).logits.detach(), trace.logits)
        parts = lp.component_attribution(trace, " Mary", versus=" John", rule=rule)
        assert parts.sizes["depth"] == 31 and parts.attrs["completeness"] <= 1e-5
        tokens = lp.attribute(trace, " Mary", versus=" John", method="linear", rule=rule)
        assert tokens.attrs["completeness"] <= 1e-5
        assert trace.token_texts[int(tokens.attribution.values.argmax())] == " Mary"


def test_the_right_name_ranks_first(real):
    """The first ten sentences that the model itself gets right; all hundred are measured by tests/benchmarks/measure_linear.py."""
    asked = first = 0
    for text, right, wrong in sentences(40):
        trace = lp.run_trace(real, text, reads=[])
        if int(trace.logits[-1].argmax()) != trace.token_id(right):
            continue
        result = lp.attribute(trace, right, versus=wrong, method="linear")
        asked, first = asked + 1, first + (trace.token_texts[int(result.attribution.values.argmax())] == right)
        if asked == 10:
            break
    assert asked == 10 and first >= 9
