"""Pictures of the lenses, from made-up results."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views import draw
from lensplorer.views.style import contrast as contrast_ratio
from lensplorer.views.style import fill

TOKENS = np.array(["the", " cat", " the"], dtype=object)


def grid(n_layers=2, n=3, targets=()):
    shape = (n_layers + 1, n)
    p = np.linspace(0, 1, shape[0] * n, dtype=np.float32).reshape(shape)
    data = {
        "top_probability": (["layer", "position", "rank"], np.stack([p, p / 2], -1)),
        "top_token": (["layer", "position", "rank"], np.full((*shape, 2), " mat", dtype=object)),
        "entropy": (["layer", "position"], 3 * p),
        "kl_to_final": (["layer", "position"], p[::-1]),
    }
    coords = {"layer": np.arange(shape[0]), "position": np.arange(n), "token": ("position", np.resize(TOKENS, n)), "rank": [1, 2]}
    if targets:
        data["probability"] = (["layer", "position", "target"], np.repeat(p[:, :, None], len(targets), -1))
        coords["target_token"] = ("target", np.array(targets, dtype=object))
    return xr.Dataset(data, coords, {"analysis": "logit_lens"})


def differences():
    data = {"logit_difference": ("layer", np.array([-1.0, 0.5, 3.0])), "probability_difference": ("layer", np.array([-0.1, 0.0, 0.9]))}
    return xr.Dataset(data, {"layer": np.arange(3)}, {"analysis": "contrast", "a": " he", "b": " she"})


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("show", ["top_probability", "entropy", "kl_to_final"])
def test_the_grid_has_a_cell_per_layer_and_position(theme, show):
    drawn = draw(grid(), theme=theme, show=show)
    image = next(iter(drawn))
    values = grid()[show].values if show != "top_probability" else grid()[show].values[..., 0]
    for layer in range(3):
        for position in range(3):
            assert image[position, layer] == pytest.approx(values[layer, position])
    hv.render(drawn)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_words_in_cells_can_be_read(theme):
    labels = list(draw(grid(), theme=theme))[1]
    assert set(labels.dimension_values("text")) == {"␠mat"}
    for column, row, ink in zip(labels.dimension_values("position"), labels.dimension_values("layer"), labels.dimension_values("ink")):
        background = fill(float(grid().top_probability[int(row), int(column), 0]), "probability", theme=theme)
        assert contrast_ratio(ink, background) >= 4.5


def test_a_large_grid_has_no_words():
    drawn = draw(grid(n_layers=12, n=128))
    assert isinstance(drawn, hv.Image)
    hv.render(drawn)


def test_a_curve_per_token_followed():
    overlay = draw(grid(targets=(" a", " a")), show="probability", position=1)
    assert len(overlay) == 2  # the same text twice stays two curves
    for curve in overlay:
        np.testing.assert_array_equal(curve.dimension_values("probability"), grid().top_probability.values[:, 1, 0])
    hv.render(overlay)


def test_what_is_not_there_is_refused():
    with pytest.raises(AnalysisError, match="Cannot show 'probability'"):
        draw(grid(), show="probability")
    with pytest.raises(AnalysisError, match="outside this result: expected -3 to 2"):
        draw(grid(targets=("x",)), show="probability", position=3)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_contrast_is_two_curves_about_zero(theme):
    layout = draw(differences(), theme=theme)
    for panel, name in zip(layout, ("logit_difference", "probability_difference")):
        np.testing.assert_array_equal(panel.Curve.I.dimension_values(name), differences()[name].values)
    hv.render(layout)
