"""Pictures of the residual stream, from made-up results."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views import draw

TOKENS = np.array(["the", " cat", " the"], dtype=object)
ATTRS = {"analysis": "residual_decomposition", "target": " mat", "versus": "", "layer": 1}


def stream(analysis, name):
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    coords = {"layer": np.arange(4), "position": np.arange(3), "token": ("position", TOKENS)}
    return xr.Dataset({name: (["layer", "position"], values)}, coords, {"analysis": analysis})


def parts(unit, dims, shape, **coords):
    values = np.linspace(-2, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return xr.Dataset({"contribution": (dims, values)}, coords, {**ATTRS, "unit": unit})


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(("analysis", "name"), [("residual_norms", "norm"), ("hidden_similarity", "cosine")])
def test_layers_count_up_from_the_embedding(theme, analysis, name):
    made = stream(analysis, name)
    image = draw(made, theme=theme)
    assert all(image[position, layer] == pytest.approx(float(made[name][layer, position])) for layer in range(4) for position in range(3))
    assert not image.opts.get("plot").kwargs["invert_yaxis"]
    hv.render(image)


def test_token_similarity_names_its_position():
    made = xr.Dataset({"cosine": ("position", [0.1, -0.2, 1.0])}, {"token": ("position", TOKENS)}, {"analysis": "token_similarity", "position": 2})
    bars = draw(made)
    assert bars.opts.get("plot").kwargs["title"] == "Cosine with ␠the (2)"
    hv.render(bars)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_components_keep_their_order_and_sign(theme):
    names = np.array(["embed", "attn 0", "mlp 0", "bias"], dtype=object)
    made = parts("layer", ["component"], (4,), component=names)
    bars = draw(made, theme=theme)
    np.testing.assert_array_equal(bars.dimension_values("contribution"), made.contribution.values)
    assert list(bars.dimension_values("token")) == ["embed", "attn␠0", "mlp␠0", "bias"]
    low, high = bars.opts.get("plot").kwargs["clim"]
    assert low == -high  # zero is the middle of the scale
    hv.render(bars)


def test_heads_are_a_grid():
    made = parts("head", ["layer", "head"], (2, 4))
    image = draw(made)
    assert image[3, 1] == pytest.approx(float(made.contribution[1, 3]))
    hv.render(image)


def test_only_the_strongest_neurons_are_drawn():
    bars = draw(parts("neuron", ["neuron"], (100,)))
    drawn = bars.dimension_values("contribution")
    assert len(drawn) == 16 and drawn[0] == -2
    assert "block 1" in bars.opts.get("plot").kwargs["title"]
    hv.render(bars)


def test_the_strongest_heads_by_source():
    made = parts("source", ["layer", "head", "source"], (2, 12, 3), source_token=("source", TOKENS))
    image = draw(made)
    assert image.dimension_values("contribution", flat=False).shape == (16, 3)
    assert image[0, 0] == pytest.approx(-2)  # head 0.0 is the strongest of these
    hv.render(image)


def test_titles_name_the_target():
    made = parts("layer", ["component"], (1,), component=np.array(["embed"], dtype=object))
    assert draw(made).opts.get("plot").kwargs["title"] == "Direct contributions to ␠mat"
    made.attrs["versus"] = " dog"
    assert draw(made).opts.get("plot").kwargs["title"] == "Direct contributions to ␠mat against ␠dog"


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize(
    ("unit", "dims", "shape"),
    [
        ("layer", ["component", "position"], (4, 3)),
        ("head", ["layer", "head", "position"], (2, 4, 3)),
        ("neuron", ["neuron", "position"], (40, 3)),
        ("source", ["layer", "head", "source"], (2, 12, 3)),
    ],
)
def test_total_and_direct_contributions_of_the_same_parts(theme, unit, dims, shape):
    total = np.linspace(-2, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    coords = {"layer": {"component": np.array(["embed", "attn 0", "mlp 0", "attn 1"], dtype=object)}, "source": {"source_token": ("source", TOKENS)}}
    attrs = {"analysis": "component_attribution", "target": "logit of ' mat'", "unit": unit, "layer": 1}
    made = xr.Dataset({"total": (dims, total), "direct": (dims, (total[::-1] + 0.1).astype(np.float32))}, coords.get(unit, {}), attrs)
    drawn = draw(made, theme=theme)
    for name, element in zip(("total", "direct"), drawn):
        values = made[name].values.reshape(-1, 3)
        if unit in ("neuron", "source"):  # the strongest by their total
            values = values[np.argsort(-abs(total.reshape(-1, 3).sum(1)))[:16]]
        shown = values if unit == "source" else values.sum(1)
        np.testing.assert_allclose(np.sort(element.dimension_values("contribution")), np.sort(shown.ravel()), rtol=1e-5, atol=1e-6)
        assert element.opts.get("plot").kwargs["title"].lower().endswith(f"{name} contributions to the logit of ' mat'")
    hv.render(drawn)


def test_an_unknown_unit_is_refused():
    with pytest.raises(AnalysisError, match="expected one of layer, head, neuron, source"):
        draw(parts("block", ["component"], (1,)))
