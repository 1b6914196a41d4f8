"""The built-in SAEs: they fit, they explain, and for each planted phenomenon some feature marks it and carries part of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensplorer.analyses.features import cross_layer_features, feature_activations, splice_fidelity
from lensplorer.interventions import ablate_feature
from lensplorer.running import run_model
from lensplorer.saes import FeatureCache, audit_sae, check_sae, encode, feature_labels, load_sae, load_sae_config, sae_ids, sae_info, sae_reads
from lensplorer.storyworld import grammar
from lensplorer.storyworld.cases import PHENOMENA, cases
from lensplorer.trace import prompt_ids, run_trace

IDS = sae_ids("storyworld")

COUNT = 12  # cases to choose a feature on, and as many to test it on
CANDIDATES = 6  # features of each SAE that are tried
MOST_ELSEWHERE = 0.2  # share of the positions of other phenomena at which a feature may be active
LEAST_DROP = 0.1  # logits: a fall that is no rounding


def test_all_of_them_ship():
    assert set(IDS) == {"resid_1", "resid_2", "resid_3", "mlp_out_0", "transcoder_0"}


@pytest.fixture(scope="module")
def saes() -> dict[str, Any]:
    return {sae_id: load_sae("storyworld", sae_id) for sae_id in IDS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("lensplorer.saes.cache._default", FeatureCache(tmp_path / "features"))


@dataclass(frozen=True)
class Activity:
    """Features of one phenomenon's prompts under one SAE: at each last position, and everywhere.  [case, d_sae], [position of any case, d_sae]"""

    last: torch.Tensor
    everywhere: torch.Tensor


def activity(model, sae, phenomenon) -> Activity:
    site = check_sae(model, sae)
    prompts = [run_trace(model, case.clean, reads=sae_reads(model, sae)) for case in cases(phenomenon, count=2 * COUNT)]
    features = [encode(sae, site.input(trace[site.read])) for trace in prompts]  # each [position, d_sae]
    return Activity(torch.stack([rows[-1] for rows in features]), torch.cat([rows[1:] for rows in features]))


@pytest.fixture(scope="module")
def activities(storyworld, saes):
    return {sae_id: {phenomenon: activity(storyworld, sae, phenomenon) for phenomenon in PHENOMENA} for sae_id, sae in saes.items()}


def auroc(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Chance that a positive is above a negative, ties counted half, for each feature. [positive, d], [negative, d] → [d]"""
    counts = torch.zeros(positive.shape[1])
    for row in positive:
        counts += (row > negative).float().mean(0) + 0.5 * (row == negative).float().mean(0)
    return counts / len(positive)


def test_auroc_is_the_area():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, 5, (n, 1), generator=generator).float() for n in (30, 50))
    truth = np.r_[np.ones(30), np.zeros(50)]
    assert float(auroc(positive, negative)) == pytest.approx(roc_auc_score(truth, torch.cat([positive, negative]).flatten().numpy()), abs=1e-6)


def test_the_shipped_configuration_loads():
    path = Path(__file__).parents[2] / "sae_configs" / "storyworld.toml"
    assert {sae_info(sae).sae_id for sae in load_sae_config(path)} <= set(IDS)


@pytest.mark.parametrize("sae_id", IDS)
def test_it_fits_explains_and_has_labels(sae_id, storyworld, saes):
    sae = saes[sae_id]
    assert all(check.agrees is not False for check in audit_sae(storyworld, sae))
    # of its world: on other text the model may do no better than without the activation, and there is no loss to recover
    trace = run_trace(storyworld, grammar.write("story", seed="saes").text)
    result = feature_activations(trace, sae)
    assert result.attrs["explained_variance"] > 0.85 and 5 < result.attrs["l0"] < 120
    assert splice_fidelity(trace, sae).attrs["loss_recovered"] > 0.95
    assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-4
    label = feature_labels(storyworld, sae, [int(result.feature[-1, 0])])[0]
    assert label.kind == "stored" and label.text and label.promotes
    assert "label" in result


def marker(model, sae, found, phenomenon, held_out) -> tuple[float, int, float] | None:
    """The first of an SAE's features that marks a phenomenon and carries part of its answer: (AUROC, feature, fall of the right answer's logit).

    Marks: fires at the last position of its prompts more than anywhere in the prompts of all other phenomena, and is silent at most of
    those (any random direction separates some tokens; a feature does so by being off). Chosen on one half of the cases, and it must hold on
    the other.
    """
    others = [rows.everywhere for name, rows in found.items() if name != phenomenon]
    chosen_on, tested_on = torch.cat([rows[::2] for rows in others]), torch.cat([rows[1::2] for rows in others])
    last = found[phenomenon].last
    silent = (chosen_on != 0).float().mean(0) <= MOST_ELSEWHERE
    area = torch.where(silent, auroc(last[:COUNT], chosen_on), 0)
    for feature in area.topk(CANDIDATES).indices.tolist():
        if area[feature] < 0.9:
            return None
        unseen = float(auroc(last[COUNT:, [feature]], tested_on[:, [feature]]))
        drop = float(np.mean([_drop(model, case, sae, feature) for case in held_out]))
        if unseen >= 0.9 and drop >= LEAST_DROP:
            return unseen, feature, drop
    return None


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_feature_marks_the_phenomenon_and_turning_it_off_lowers_the_right_answer(phenomenon, storyworld, saes, activities):
    held_out = cases(phenomenon, count=2 * COUNT)[COUNT : COUNT + 8]
    found = {sae_id: marker(storyworld, sae, activities[sae_id], phenomenon, held_out) for sae_id, sae in saes.items()}
    assert any(found.values()), f"no feature of any SAE marks {phenomenon} and carries its answer"


def _drop(model: Any, case: Any, sae: Any, feature: int) -> float:
    """How far the right answer's logit falls when the feature is taken out."""
    tokens = torch.tensor([prompt_ids(model, case.clean)])
    [right] = model.tokenizer.encode(case.right, add_special_tokens=False)
    clean, without = (run_model(model, tokens, interventions=interventions).logits[0, -1] for interventions in ((), (ablate_feature(sae, feature),)))
    return float(clean[right] - without[right])


def test_paths_through_the_residual_stream(storyworld, saes):
    residual = [sae for sae_id, sae in saes.items() if sae_id.startswith("resid")]
    trace = run_trace(storyworld, "When Mary and John went to the shop, Mary gave the book to", reads=sae_reads(storyworld, residual))
    result = cross_layer_features(trace, residual)
    assert (result.successor.values[:-1] > 0).any(), "some feature goes on in the next layer"
