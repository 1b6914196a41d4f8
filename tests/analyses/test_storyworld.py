"""On the built-in model the analyses find what is known to be there."""

from __future__ import annotations

import numpy as np
import pytest

import lensplorer as lp
from lensplorer.storyworld import cases, ground_truth


def test_the_indirect_object_ranks_first_in_its_attribution(storyworld):
    """Integrated gradients of right minus wrong name put the right name first of all tokens, in nine prompts of ten."""
    first = 0
    for case in cases.cases("indirect_object", count=100, seed=11):
        trace = lp.run_trace(storyworld, case.clean, reads=[lp.attribute])
        result = lp.attribute(trace, case.right, versus=case.wrong)
        assert result.attrs["completeness"] <= 0.01
        first += trace.token_texts[int(result.attribution.values.argmax())] == case.right
    assert first >= 90


@pytest.mark.parametrize("phenomenon", ["indirect_object", "capital", "repeat"])
def test_contrast_and_decomposition_favour_the_right_answer(phenomenon, storyworld):
    for case in cases.cases(phenomenon, count=5, seed=11):
        trace = lp.run_trace(storyworld, case.clean, reads=[lp.contrast, lp.residual_decomposition])
        contrast = lp.contrast(trace, case.right, case.wrong)
        parts = lp.residual_decomposition(trace, case.right, versus=case.wrong, unit="head")
        assert contrast.logit_difference[-1] > 0
        assert parts.attrs["completeness"] <= 1e-4
        assert float(contrast.logit_difference[-1]) == pytest.approx(parts.attrs["logit"], abs=1e-3)


def test_the_head_that_writes_the_answer_is_the_planted_one(storyworld):
    """Averaged over prompts, the head with the largest direct contribution is the one that ground_truth names."""
    for phenomenon in ("indirect_object", "repeat"):
        (planted,) = (finding for finding in ground_truth.findings(phenomenon) if finding.name == "direct")
        total = 0
        for case in cases.cases(phenomenon, count=12, seed=11):
            trace = lp.run_trace(storyworld, case.clean, reads=[lp.residual_decomposition])
            total = total + lp.residual_decomposition(trace, case.right, versus=case.wrong, unit="head").contribution.values
        assert np.unravel_index(int(np.argmax(total)), np.shape(total)) == (planted.layer, planted.head)


def test_head_scores_find_the_planted_heads(storyworld):
    scores = lp.head_scores(storyworld)
    for name, variable in (("induction_head", "induction"), ("previous_token_head", "previous_token")):
        (planted,) = (finding for finding in ground_truth.findings("repeat") if finding.name == name)
        values = scores[variable].values
        assert np.unravel_index(int(np.nanargmax(values)), values.shape) == (planted.layer, planted.head)
        assert np.nanmax(values) >= planted.at_least
