"""Pictures of made-up results: they draw in both themes, and show the numbers they are given."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views import draw
from lensplorer.views.base import _load_views

TOKENS = np.array(["the", " cat", "\n"], dtype=object)


def made_up(name, variables, coords=None, **attrs):
    return xr.Dataset(variables, coords=coords or {}, attrs={"analysis": name, "model": "m", "source": "", **attrs})


def comparison():
    sides = {f"{score}_{side}": ("position", [np.nan, 1.0, 2.0]) for score in ("surprisal", "probability", "entropy", "rank") for side in "ab"}
    variables = {"kl": ("position", [0.0, 0.5, 1.0]), "js": ("position", [0.0, 0.1, 0.2]), "top1_agree": ("position", [True, True, False]), **sides}
    coords = {"position": np.arange(3), "token": ("position", TOKENS), "token_b": ("position", TOKENS)}
    return made_up("compare", variables, coords, model_a="m", model_b="n", interventions="", interventions_b="ablate(…)")


def change(dims, shape):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 2
    coords = {"position": np.arange(3), "token": ("position", TOKENS)} if "position" in dims else {}
    return made_up("difference", {"norm": (dims, values)}, coords, of="residual_norms", model_a="m", model_b="m")


def grid(name, variable, unit):
    coords = {"layer": [0, 1], unit: np.arange(3)} | ({"token": ("position", TOKENS)} if unit == "position" else {})
    return made_up(name, {variable: (("layer", unit), np.eye(2, 3, dtype=np.float32))}, coords, hook="resid_pre")


def pairs(name, n=3):
    labels = np.array([f"attn {i}" for i in range(n)], dtype=object)
    values = {"predicted": ("component", np.arange(n, dtype=np.float32)), "measured": ("component", np.arange(n, dtype=np.float32) ** 2)}
    return made_up(name, values, {"component": labels}, correlation=0.9 if n > 1 else float("nan"))


def candidates():
    columns = {"probability_a": [0.2, 0.5], "probability_b": [0.7, 0.1]}
    variables = {"token": ("candidate", np.array([" a", "\n"], dtype=object)), **{key: ("candidate", value) for key, value in columns.items()}}
    return made_up("next_token_change", variables, kl=0.3, js=0.1, position=4)


RESULTS = {
    "compare": comparison,
    "difference 1": lambda: change(("position",), (3,)),
    "difference 2": lambda: change(("layer", "position"), (2, 3)),
    "difference 4": lambda: change(("layer", "head", "query", "source"), (2, 2, 3, 3)),
    "activation": lambda: grid("activation_patching", "effect", "position"),
    "attribution": lambda: grid("attribution_patching", "estimate", "head"),
    "confirm": lambda: pairs("confirm_patching"),
    "verify": lambda: pairs("verify_by_ablation", 1),
    "candidates": candidates,
}


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("which", RESULTS)
def test_every_result_is_drawn(which, theme):
    _load_views()
    assert hv.renderer("bokeh").get_plot(draw(RESULTS[which](), theme=theme)).state is not None


def test_the_grid_shows_its_numbers_and_its_label():
    picture = draw(grid("attribution_patching", "estimate", "position"))
    assert "first order" in picture.opts.get("plot").kwargs["title"]
    assert sorted(picture.dimension_values("estimate").tolist()) == [0, 0, 0, 0, 1, 1]


def test_leading_dimensions_are_fixed_or_averaged():
    result = change(("layer", "head", "query", "source"), (2, 2, 3, 3))
    values = result.norm.values
    mean = draw(result).dimension_values("norm", flat=False)
    fixed = draw(result, layer=1, head=0).dimension_values("norm", flat=False)
    np.testing.assert_allclose(np.sort(mean, axis=None), np.sort(values.mean((0, 1)), axis=None), rtol=1e-5)
    np.testing.assert_allclose(np.sort(fixed, axis=None), np.sort(values[1, 0], axis=None))
    with pytest.raises(AnalysisError, match="no dimension 'rank'"):
        draw(result, rank=1)
    with pytest.raises(AnalysisError, match="Choose from 'norm'"):
        draw(result, variable="cosine")


def test_side_by_side_stand_two_results_of_one_analysis():
    _load_views()
    from lensplorer.views.comparison import side_by_side

    one = grid("activation_patching", "effect", "head")
    picture = side_by_side(one, one, change(("layer", "position"), (2, 3)))
    assert len(picture) == 3 and hv.renderer("bokeh").get_plot(picture).state is not None
    with pytest.raises(AnalysisError, match="two results of one analysis"):
        side_by_side(one, pairs("verify_by_ablation"))
