"""Head scores against a slow loop and a planted head; clusters that do not crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.heads import head_clusters, head_scores
from lensplorer.errors import AnalysisError
from lensplorer.running import run_model
from lensplorer.trace import run_trace

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62, 63, 64, 65]


class PlantedInduction:
    """Makes head 2 of block 1 attend to one fixed distance."""

    def __init__(self, distance):
        self.distance = distance

    def __repr__(self):
        return f"PlantedInduction({self.distance})"

    def hooks(self, model, positions):
        def plant(pattern, hook):
            pattern = pattern.clone()
            pattern[:, 2] = 0
            for query in range(pattern.shape[2]):
                pattern[:, 2, query, max(0, query - self.distance)] = 1
            return pattern

        return [("blocks.1.attn.hook_pattern", plant)]


@pytest.mark.parametrize(("distance", "name"), [(1, "previous_token"), (10, "duplicate_token"), (9, "induction")])
def test_a_planted_head_scores_one(tiny_model, distance, name):
    scores = head_scores(tiny_model("gpt2"), length=10, batch=2, interventions=[PlantedInduction(distance)])
    for score in ("previous_token", "duplicate_token", "induction"):
        assert float(scores[score].sel(layer=1, head=2)) == (1 if score == name else 0)


def test_scores_against_a_slow_loop(tiny_model):
    model = tiny_model("llama")
    scores = head_scores(model, length=6, batch=1, seed=3)
    bos = int(model.cfg.default_prepend_bos)
    ordinary = [i for i in range(len(model.tokenizer)) if i not in model.tokenizer.all_special_ids]
    picks = torch.randint(len(ordinary), (1, 6), generator=torch.Generator().manual_seed(3))[0]
    copy = [ordinary[i] for i in picks]
    ids = [model.tokenizer.bos_token_id] * bos + copy + copy
    pattern = run_model(model, torch.tensor([ids]), reads=["blocks.2.attn.hook_pattern"]).activations["blocks.2.attn.hook_pattern"][0, 1]
    second = range(bos + 6, bos + 12)
    assert float(scores.induction[2, 1]) == pytest.approx(np.mean([float(pattern[q, q - 5]) for q in second]), rel=1e-4)
    assert float(scores.duplicate_token[2, 1]) == pytest.approx(np.mean([float(pattern[q, q - 6]) for q in second]), rel=1e-4)
    previous = [float(pattern[q, q - 1]) for q in range(bos + 1, bos + 12)]
    assert float(scores.previous_token[2, 1]) == pytest.approx(np.mean(previous), rel=1e-4)


def test_sliding_windows(tiny_model):
    model = tiny_model("mistral")  # window of 8
    fitting = head_scores(model, batch=1)
    assert fitting.attrs["length"] == 7
    assert (fitting.duplicate_token > 0).all()
    too_long = head_scores(model, length=8, batch=1)
    assert too_long.duplicate_token.isnull().all()
    assert (too_long.induction > 0).all()


def test_scores_refuse(tiny_model):
    with pytest.raises(AnalysisError, match="length must be 2 to 31"):
        head_scores(tiny_model("gpt2"), length=32)
    with pytest.raises(AnalysisError, match="batch must be at least 1"):
        head_scores(tiny_model("gpt2"), batch=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::numba.core.errors.NumbaWarning")
def test_clusters(tiny_model):
    trace = run_trace(tiny_model("gpt2"), IDS)
    found = head_clusters(trace, n_clusters=3, seed=1)
    again = head_clusters(trace, n_clusters=3, seed=1)
    assert found.attrs["projection"] == "UMAP"
    np.testing.assert_array_equal(found.x, again.x)
    cluster = found.cluster.values
    assert sorted(found["size"].values.tolist(), reverse=True) == found["size"].values.tolist()
    rows = np.stack(
        [trace[f"blocks.{layer}.attn.hook_pattern"][head, -1].numpy() for layer, head in zip(found["layer"].values, found["head"].values)]
    )
    for index in range(3):
        np.testing.assert_allclose(found.mean_pattern.values[index], rows[cluster == index].mean(0), atol=1e-6)
        centres = found.mean_pattern.values
    nearest = ((rows[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest, cluster)


def test_clusters_without_umap_on_few_distinct_rows(tiny_model):
    trace = run_trace(tiny_model("gpt2"), IDS)
    with pytest.raises(AnalysisError, match=r"n_clusters must be 1 to 12, got 13"):
        head_clusters(trace, n_clusters=13)
    only = head_clusters(trace, n_clusters=1, position=0)  # every head reads position 0 alone
    assert only.attrs["projection"] == "principal components"
    np.testing.assert_allclose(only.x, 0, atol=1e-6)


def test_clusters_name_their_extra(tiny_model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(AnalysisError, match=r'pip install "lensplorer\[clusters\]"'):
        head_clusters(run_trace(tiny_model("gpt2"), IDS))
