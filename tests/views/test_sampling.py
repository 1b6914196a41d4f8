"""Pictures of a made-up sampling result; no model."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from lensplorer.errors import AnalysisError
from lensplorer.views.base import draw

STAGES = ["base", "repetition", "frequency", "presence", "temperature", "constraint", "top_k", "top_p", "min_p", "greedy"]
RAN = ["base", "temperature", "constraint", "top_k"]


def result() -> xr.Dataset:
    base, hot, masked, final = [0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.0, 0.75, 0.25], [0.0, 1.0, 0.0]
    p = np.array([base, base, base, base, hot, masked, final, final, final, final])
    removed = np.zeros(10)
    removed[[5, 6]] = 0.6, 0.1
    return xr.Dataset(
        {
            "token_id": (["candidate"], [5, 6, 7]),
            "token": (["candidate"], np.array([" a", "\n", " a"], dtype=object)),
            "rank": (["candidate"], [1, 2, 3]),
            "logit": (["candidate"], [2.0, 1.0, 0.5]),
            "p_base": (["candidate"], p[0]),
            "p_final": (["candidate"], p[-1]),
            "kept": (["candidate"], [False, True, False]),
            "valid": (["candidate"], [False, True, True]),
            "chosen": (["candidate"], [False, True, False]),
            "p": (["stage", "candidate"], p),
            "active": (["stage"], [name in RAN for name in STAGES]),
            "n_kept": (["stage"], [3, 3, 3, 3, 3, 2, 1, 1, 1, 1]),
            "mass_removed": (["stage"], removed),
            "mass_moved": (["stage"], removed),
            "kl": (["stage"], removed),
        },
        {"stage": STAGES, "candidate": [0, 1, 2]},
        {"analysis": "sampling_distribution", "mass_kept": 0.3},
    )


def rendered(element):
    return hv.renderer("bokeh").get_plot(element).state


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_waterfall_goes_from_one_to_what_is_kept(theme):
    picture = draw(result(), theme=theme)
    kept, gone = (element.dframe() for element in picture)
    assert kept.y1.tolist() == pytest.approx([1, 1, 0.4, 0.3])
    assert (gone.y1 - gone.y0).tolist() == pytest.approx([0, 0, 0.6, 0.1])
    assert gone.y1.tolist() == pytest.approx([1, 1, *kept.y1[1:3]])  # each stage starts where the one before ended
    figure = rendered(picture)
    assert figure.xaxis[0].formatter.args["labels"] == ["model", "temperature", "constraint", "top-k"]
    assert "30.0 %" in figure.title.text


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_candidates_show_both_probabilities_and_say_why_one_is_out(theme):
    picture = draw(result(), theme=theme, part="candidates")
    filled, outline = (element.dframe() for element in picture)
    assert filled.right.tolist() == [0, 1, 0] and outline.right.tolist() == [0.5, 0.3, 0.2]
    assert filled.status.tolist() == ["excluded by the constraint", "chosen", "excluded"]
    assert rendered(picture).yaxis[0].formatter.args["labels"] == ["␠a", "⏎", "␠a"]


def test_stages_by_candidate():
    image = draw(result(), part="stages")
    assert isinstance(image, hv.Image)
    assert image[1, 2] == pytest.approx(0.75) and image[0, 0] == pytest.approx(0.5)
    rendered(image)


def test_an_unknown_part():
    with pytest.raises(AnalysisError, match="'stages'"):
        draw(result(), part="stage")
