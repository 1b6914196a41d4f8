"""Pictures of made-up results; no model."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views.base import draw

TEXTS = np.array([" a", "\n", " a"], dtype=object)
TOKENS = {"source": [0, 1, 2], "source_token": ("source", TEXTS), "query": [0, 1, 2], "query_token": ("query", TEXTS)}
SOURCES = {name: value for name, value in TOKENS.items() if name.startswith("source")}
PATTERN = np.array([[1, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]])


def rendered(element):
    return hv.renderer("bokeh").get_plot(element).state


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_patterns_count_queries_down(theme):
    weights = np.stack([PATTERN, PATTERN**2])[None]
    result = xr.Dataset({"weight": (["layer", "head", "query", "source"], weights)}, TOKENS, {"analysis": "attention_patterns"})
    image = draw(result, theme=theme, layer=0, head=0)
    assert isinstance(image, hv.Image)
    for query in range(3):
        for source in range(3):
            assert image[source, query] == pytest.approx(PATTERN[query, source])
    figure = rendered(image)
    assert figure.y_range.start > figure.y_range.end
    assert figure.xaxis[0].formatter.args["labels"] == ["␠a", "⏎", "␠a"]
    assert draw(result)[0, 0] == 1  # the mean over heads
    with pytest.raises(AnalysisError, match="head 2 is not in this result: expected 0 to 1"):
        draw(result, head=2)


def test_rollout_layers_and_influence():
    rollout = xr.Dataset({"weight": (["query", "source"], PATTERN)}, TOKENS, {"analysis": "attention_rollout"})
    assert draw(rollout)[1, 2] == pytest.approx(0.3)
    layers = xr.Dataset({"weight": (["layer", "source"], PATTERN[:2])}, SOURCES, {"analysis": "attention_by_layer", "position": 2})
    assert draw(layers)[1, 1] == pytest.approx(0.6)
    attrs = {"analysis": "attention_influence", "value_weighted": 0, "top_heads": 4}
    influence = draw(xr.Dataset({"influence": (["source"], [1.0, 0.5, 0.0])}, SOURCES, attrs))
    assert list(influence.dimension_values("influence")) == [1, 0.5, 0]
    assert rendered(influence).xaxis[0].formatter.args["labels"] == ["␠a", "⏎", "␠a"]


def test_head_grids_survive_missing_values():
    grid = np.array([[0.1, np.nan], [0.3, 0.4]])
    result = xr.Dataset({"induction": (["layer", "head"], grid), "previous_token": (["layer", "head"], grid)}, attrs={"analysis": "head_scores"})
    layout = draw(result)
    assert len(layout) == 2
    assert layout.Image.I[1, 1] == pytest.approx(0.4)
    rendered(layout)


def test_clusters_show_their_mean_rows():
    result = xr.Dataset(
        {
            "layer": (["head_index"], [0, 0, 1]),
            "head": (["head_index"], [0, 1, 0]),
            "x": (["head_index"], [0.0, 1, 2]),
            "y": (["head_index"], [0.0, 1, 2]),
            "cluster": (["head_index"], [0, 0, 1]),
            "mean_pattern": (["cluster", "source"], PATTERN[:2]),
        },
        SOURCES,
        {"analysis": "head_clusters", "n_clusters": 2, "position": 2, "projection": "UMAP"},
    )
    layout = draw(result)
    points, rows = layout.Points.I, layout.Image.I
    assert list(points.dimension_values("cluster")) == [0, 0, 1]
    assert list(points.dimension_values("head")) == ["0.0", "0.1", "1.0"]
    assert rows[1, 1] == pytest.approx(0.6)
    rendered(layout)
