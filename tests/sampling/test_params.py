"""The knobs: defaults, presets, and what is refused."""

from __future__ import annotations

import pytest

from lensplorer.errors import SamplingError
from lensplorer.sampling.params import PRESETS, DecodingParams


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"min_p": -0.01}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"greedy": 1}, "greedy"),
        ({"stop_sequences": ("a", "")}, "Stop sequence 2 is empty"),
        ({"stop_sequences": "stop"}, "stop_sequences"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(values, named):
    with pytest.raises(SamplingError, match=named):
        DecodingParams(**values)


def test_presets_have_names_and_anything_else_is_custom():
    for name, preset in PRESETS.items():
        assert DecodingParams.preset(name, seed=9, stop_sequences=["."]).preset_name == name == preset.preset_name
    assert DecodingParams(temperature=0.123).preset_name == "custom"
    assert DecodingParams.preset("custom", top_k=3) == DecodingParams(top_k=3)
    assert DecodingParams.preset("greedy").is_greedy
    with pytest.raises(SamplingError, match="'creative'"):
        DecodingParams.preset("creativ")


def test_a_mapping_goes_there_and_back():
    params = DecodingParams(temperature=1, seed=None, stop_sequences=("\n", "x"))
    assert DecodingParams.from_dict(params.to_dict()) == params
    with pytest.raises(SamplingError, match="'top_p'"):
        DecodingParams.from_dict({"topp": 1})
