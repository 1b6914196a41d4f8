"""Pictures of made-up results; no model."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views.base import draw

TEXTS = np.array(["<bos>", " a", " a"], dtype=object)
ATTRS = {
    "analysis": "feature_activations", "sae": "release/id", "explained_variance": 0.9, "l0": 2.5, "hook": "blocks.1.hook_resid_pre", "hook_out": "",
}  # fmt: skip


@pytest.fixture
def result():
    feature = np.array([[-1, -1], [7, 12], [12, -1]])
    activation = np.array([[np.nan, np.nan], [3.0, 1.0], [2.0, 0.0]])
    label = np.array([["", ""], ["␠cat ␠dog", "numbers"], ["numbers", ""]], dtype=object)
    return xr.Dataset(
        {"feature": (["position", "rank"], feature), "activation": (["position", "rank"], activation), "label": (["position", "rank"], label)},
        {"position": [0, 1, 2], "token": ("position", TEXTS), "rank": [1, 2]},
        ATTRS,
    )


def rendered(element):
    return hv.renderer("bokeh").get_plot(element).state


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_grid_counts_ranks_down_and_numbers_its_cells(result, theme):
    overlay = draw(result, theme=theme)
    image, labels = overlay.Image.I, overlay.Labels.I
    assert image[1, 1] == 3 and image[1, 2] == 1 and image[2, 1] == 2
    assert np.isnan(image[0, 1]) and np.isnan(image[2, 2])
    assert set(zip(labels["position"], labels["rank"], labels["feature"])) == {(1, 1, "7"), (1, 2, "12"), (2, 1, "12")}
    figure = rendered(overlay)
    assert figure.xaxis[0].formatter.args["labels"] == ["<bos>", "␠a", "␠a"]
    assert figure.title.text == "Features of release/id (90.0% of the variance, 2.5 active per token)"
    assert figure.y_range.start > figure.y_range.end


def test_one_position_has_bars_with_labels(result):
    bars = draw(result, position=-2)
    assert list(bars.dimension_values("activation")) == [3, 1] and list(bars.dimension_values("feature")) == [7, 12]
    assert rendered(bars).yaxis[0].formatter.args["labels"] == ["7\xa0\xa0␠cat\xa0␠dog", "12\xa0\xa0numbers"]
    assert rendered(draw(result, position=0)).title.text == "Features at <bos> (0): none, the position is left out"
    assert rendered(draw(result.drop_vars("label"), position=1)).yaxis[0].formatter.args["labels"] == ["7", "12"]
    with pytest.raises(AnalysisError, match="Position 3 is outside this result: expected -3 to 2"):
        draw(result, position=3)
    with pytest.raises(AnalysisError, match="not both"):
        draw(result, position=1, feature=7)


def test_one_feature_over_the_prompt(result):
    bars = draw(result, feature=12)
    assert list(bars.dimension_values("activation")) == [0, 1, 2]
    rendered(bars)


def test_nothing_active_is_said(result):
    result.feature[:] = -1
    result.activation[:] = 0
    assert rendered(draw(result, position=1)).title.text.endswith("none is active")
    rendered(draw(result))


def test_paths_join_features(theme="dark"):
    similarity = np.full((1, 2, 2), np.nan)
    similarity[0, 0, 1] = 0.8
    result = xr.Dataset(
        {
            "feature": (["layer", "rank"], [[5, 9], [3, 4]]),
            "activation": (["layer", "rank"], [[2.0, 1.0], [3.0, 0.5]]),
            "successor": (["layer", "rank"], [[2, -1], [-1, -1]]),
            "path": (["layer", "rank"], [[0, 1], [2, 0]]),
            "similarity": (["link", "rank", "next_rank"], similarity),
        },
        {"layer": [2, 6], "rank": [1, 2], "link": [2], "next_rank": [1, 2]},
        {"analysis": "cross_layer_features", "position": 3, "position_token": " a"},
    )
    overlay = draw(result, theme=theme)
    segments, points = overlay.Segments.I, overlay.Points.I
    assert [tuple(row) for row in zip(*(segments.dimension_values(i) for i in range(5)))] == [(0, 1, 1, 2, 0.8)]
    colour = dict(zip(points["feature"], points["colour"]))
    assert colour[5] == colour[4] and colour[9] == colour[3] != colour[5]
    rendered(overlay)
    unlinked = result.copy(deep=True)
    unlinked.successor[:] = -1
    rendered(draw(unlinked))


def test_the_cost_of_a_splice():
    result = xr.Dataset(
        {"loss_clean": (["position"], [np.nan, 1.0, 2.0]), "loss_spliced": (["position"], [np.nan, 1.5, 1.75])},
        {"position": [0, 1, 2], "token": ("position", TEXTS)},
        {**ATTRS, "analysis": "splice_fidelity", "loss_recovered": 0.987},
    )
    bars = draw(result)
    assert list(bars.dimension_values("added loss, nats")) == [0, 0.5, -0.25]
    assert "98.7% of the loss recovered" in rendered(bars).title.text
