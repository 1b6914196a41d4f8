"""Pictures of token scores and next tokens, from made-up results."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views import draw

TOKENS = np.array(["the", " cat", "\n", " cat"], dtype=object)


def scores(**changes):
    values = {"probability": [np.nan, 0.5, 0.25, 0.01], "energy": [np.nan, -9.0, -8.0, -12.0], "rank": [np.nan, 1, 3, 70]}
    made = {name: ("position", np.array(value, dtype=np.float32)) for name, value in {**values, **changes}.items()}
    return xr.Dataset(made, {"position": np.arange(4), "token": ("position", TOKENS)}, {"analysis": "token_scores"})


def candidates():
    ids, p = np.array([3, 9, 1]), np.array([0.6, 0.3, 0.05], dtype=np.float32)
    data = {"token_id": ids, "token": np.array([" a", " b", "\n"], dtype=object), "logit": p, "probability": p, "z_score": p}
    return xr.Dataset({name: ("rank", value) for name, value in data.items()}, {"rank": [1, 2, 3]}, {"analysis": "next_token"})


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("score", ["probability", "energy", "rank"])
def test_a_bar_per_token(theme, score):
    bars = draw(scores(), theme=theme, score=score)
    np.testing.assert_array_equal(bars.dimension_values(score), scores()[score].values)
    assert list(bars.dimension_values("position")) == [0, 1, 2, 3]  # repeated tokens stay apart
    assert list(bars.dimension_values("token")) == ["the", "␠cat", "⏎", "␠cat"]
    hv.render(bars)


def test_the_scale_covers_what_is_there():
    assert draw(scores(), score="energy").opts.get("plot").kwargs["clim"] == (-12.0, -8.0)
    assert draw(scores()).opts.get("plot").kwargs["clim"] == (0.0, 1.0)
    hv.render(draw(scores(rank=[np.nan] * 4), score="rank"))


def test_an_unknown_score_is_refused():
    with pytest.raises(AnalysisError, match=r"Unknown score 'entropi'.*'entropy'"):
        draw(scores(), score="entropi")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_candidates_are_bars_of_their_probability(theme):
    bars = draw(candidates(), theme=theme)
    np.testing.assert_array_equal(bars.dimension_values("right"), candidates().probability.values)
    assert list(bars.dimension_values("token")) == ["␠a", "␠b", "⏎"]
    hv.render(bars)
    hv.render(draw(candidates().isel(rank=slice(0, 0))))  # a search that found nothing
