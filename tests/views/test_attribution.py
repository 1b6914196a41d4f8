"""Pictures of made-up results; no model."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.views.base import draw

TEXTS = np.array([" a", "\n", " a"], dtype=object)
ATTRS = {"method": "integrated_gradients", "completeness": 0.004, "signed": 1, "target": " b", "objective": "logit"}


def rendered(element):
    return hv.renderer("bokeh").get_plot(element).state


def test_bars_keep_their_sign_and_repeated_tokens():
    coords = {"position": [0, 1, 2], "token": ("position", TEXTS)}
    result = xr.Dataset({"attribution": (["position"], [0.5, -1.0, 0.0])}, coords, {**ATTRS, "analysis": "attribute", "versus": " c"})
    bars = draw(result)
    assert list(bars.dimension_values("attribution")) == [0.5, -1, 0]
    assert list(bars.dimension_values("bottom")) == [0, -1, 0]
    assert list(bars.dimension_values("token")) == ["␠a", "⏎", "␠a"]
    figure = rendered(bars)
    assert figure.title.text == "What speaks for ␠b over ␠c (integrated gradients, off by 0.4 %)"
    assert figure.xaxis[0].formatter.args["labels"] == ["␠a", "⏎", "␠a"]
    unsure = draw(result.assign_attrs(note="Integrated gradients have not converged.", completeness=0.2))
    assert rendered(unsure).title.text.endswith("off by 20 %, not converged)")


def test_matrix_rows_stand_at_their_positions():
    values = np.array([[0.1, 0, 0], [0.2, -0.3, 0]])
    coords = {"generated": [1, 2], "generated_token": ("generated", TEXTS[1:]), "source": [0, 1, 2], "source_token": ("source", TEXTS)}
    image = draw(xr.Dataset({"attribution": (["generated", "source"], values)}, coords, {**ATTRS, "analysis": "attribution_matrix"}), theme="light")
    assert image[0, 1] == pytest.approx(0.1)
    assert image[1, 2] == pytest.approx(-0.3)
    rendered(image)


@pytest.mark.parametrize("n_random", [0, 2])
def test_curves(n_random):
    missing = np.full(3, np.nan)
    random = np.array([1.0, 0.6, 0.2]) if n_random else missing
    curves = {"deletion": [1.0, 0.5, 0.2], "insertion": [0.2, 0.9, 1.0], "random_deletion": random, "random_insertion": random}
    result = xr.Dataset(
        {name: (["step"], values) for name, values in curves.items()}, {"step": [0, 1, 2]}, {**ATTRS, "analysis": "faithfulness_curves"}
    )
    overlay = draw(result)
    assert len(overlay) == (4 if n_random else 2)
    assert list(overlay.Curve.Deletion.dimension_values("value")) == [1.0, 0.5, 0.2]
    rendered(overlay)


def test_agreement():
    values = np.array([[1.0, -0.5], [-0.5, 1.0]])
    names = np.array(["saliency", "occlusion"], dtype=object)
    dims = ["attribution", "other"]
    data = {"rank_correlation": (dims, values), "top_k_overlap": (dims, abs(values))}
    layout = draw(xr.Dataset(data, {"attribution": names, "other": names}, {"analysis": "attribution_agreement", "top_k": 2}))
    assert layout.Image.I[1, 0] == pytest.approx(-0.5)
    rendered(layout)
