"""What is said to be in the model is in it, found again by lensplorer's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lensplorer.models import load_model
from lensplorer.storyworld import cases, ground_truth


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("storyworld", verify=False)


def test_every_finding_holds_of_itself_and_could_fail() -> None:
    found = ground_truth.findings()
    assert {finding.phenomenon for finding in found} == set(cases.PHENOMENA)
    for finding in found:
        assert finding.holds(finding.measured), finding
        assert finding.at_least is not None or finding.at_most is not None
        assert not (finding.holds(-100.0) and finding.holds(100.0))


def test_heads_are_found_again(model: Any) -> None:
    again = {finding.name: finding for finding in ground_truth.measure_heads(model)}
    for finding in ground_truth.findings("repeat"):
        if finding.name in again:
            assert finding.holds(again[finding.name].measured), finding
            assert (finding.layer, finding.head) == (again[finding.name].layer, again[finding.name].head)


@pytest.mark.parametrize("phenomenon", ["indirect_object", "repeat", "capital", "quote"])
def test_phenomena_are_found_again_on_other_cases(model: Any, phenomenon: str) -> None:
    batch = ground_truth.tensors(model, cases.cases(phenomenon, count=ground_truth.FEWEST, seed=1))
    effect = ground_truth.effects(model, batch)
    for finding in ground_truth.findings(phenomenon):
        found = {
            "solved": lambda: effect.solved,
            "starts_at_source": lambda: float(effect.source[0]),
            "arrives": lambda f=finding: float(effect.last[f.layer]),
            "mover": lambda f=finding: float(effect.heads[f.layer, f.head]),
            "direct": lambda f=finding: float(effect.direct[f.layer, f.head]),
            "mlp": lambda f=finding: float(effect.mlps[f.layer]),
        }.get(finding.name)
        if found is not None:
            assert finding.holds(found()), (finding, found())


@pytest.mark.parametrize("phenomenon", cases.PHENOMENA)
def test_cases_align_and_answers_are_single_tokens(model: Any, phenomenon: str) -> None:
    batch = ground_truth.tensors(model, cases.cases(phenomenon, count=6))
    assert batch.clean.shape == batch.corrupt.shape and batch.changed
    assert (batch.right != batch.wrong).all() and (batch.clean[:, 0] == 0).all()


def test_direct_contributions_are_the_decomposition(model: Any) -> None:
    """The heads' direct contributions agree with lensplorer's exact decomposition of the logit difference."""
    from lensplorer.analyses.residual import residual_decomposition
    from lensplorer.trace import run_trace

    case = cases.cases("indirect_object", count=1)[0]
    effect = ground_truth.effects(model, ground_truth.tensors(model, [case]))
    result = residual_decomposition(run_trace(model, case.clean), case.right, versus=case.wrong, unit="head")
    by_head = torch.tensor(result.contribution.values)
    assert torch.allclose(by_head.float(), effect.direct, atol=1e-3)


def test_cases_of_different_lengths_are_refused(model: Any) -> None:
    wrong = [cases.Case("x", "a b", "a b c", " red", " blue")]
    with pytest.raises(ValueError, match="cases of 'x' are not of one length"):
        ground_truth.tensors(model, wrong)
    with pytest.raises(ValueError, match="an answer of 'x' is not one token"):
        ground_truth.tensors(model, [cases.Case("x", "red", "blue", "xyz", " blue")])
