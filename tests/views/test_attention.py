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


def pairs(n_query, n_key, **changes):
    difference = np.linspace(-1, 2, n_query * n_key).reshape(n_query, n_key)
    variables = {
        **{name: (["query_term", "key_term"], difference) for name in ("difference", "contribution")},
        **{f"query_{name}": (["query_term"], difference.sum(1)) for name in ("difference", "contribution")},
        **{f"key_{name}": (["key_term"], difference.sum(0)) for name in ("difference", "contribution")},
    }
    terms = {"query_term": [f"head 0.{i}" for i in range(n_query)], "key_term": [f"mlp {i}" for i in range(n_key)]}
    attrs = {"analysis": "qk_attribution", "layer": 2, "head": 1, "query_position": 9, "source_position": 4}
    return xr.Dataset(variables, terms, attrs).assign(**changes)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pairs_of_terms_are_a_grid_over_its_sums(theme):
    made = pairs(3, 2)
    layout = draw(made, theme=theme)
    grid, *bars = layout
    assert all(grid[key, query] == pytest.approx(float(made.difference[query, key])) for query in range(3) for key in range(2))
    assert grid.opts.get("plot").kwargs["title"] == "Why head 2.1 attends more from 9 to 4 than to the others"
    for bar, side in zip(bars, ("query", "key")):
        np.testing.assert_allclose(bar.dimension_values("difference"), made[f"{side}_difference"])
    assert list(bars[0].dimension_values("token")) == ["head␠0.0", "head␠0.1", "head␠0.2"]
    rendered(layout)


def test_of_many_terms_the_strongest_are_drawn_in_their_order():
    made = pairs(40, 2)
    grid, bars, _ = draw(made)
    kept = sorted(np.argsort(-abs(made.query_difference.values))[:16])
    assert grid.dimension_values("difference", flat=False).shape == (16, 2)
    np.testing.assert_allclose(bars.dimension_values("difference"), made.query_difference.values[kept])


def test_a_lone_source_is_drawn_without_others():
    made = pairs(2, 2, difference=(["query_term", "key_term"], np.full((2, 2), np.nan)))
    grid, *_ = draw(made)
    assert grid[0, 1] == pytest.approx(float(made.contribution[1, 0]))
    assert grid.opts.get("plot").kwargs["title"] == "Why head 2.1 attends from 9 to 4"


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
