"""Colours: legible ink on every fill, text legible on every surface, scales that run the way they say."""

from __future__ import annotations

import pytest

from lensplorer.views.style import QUANTITIES, THEMES, colormap, contrast, fill, ink


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_ink_is_legible_on_every_fill(quantity, theme):
    assert min(contrast(ink(colour), colour) for colour in colormap(quantity, theme)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("surface", ["background", "card", "hover"])
@pytest.mark.parametrize("name", ["text", "muted", "bad"])
def test_text_is_legible_on_every_surface(theme, surface, name):
    assert contrast(THEMES[theme][name], THEMES[theme][surface]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_zero_of_a_signed_scale_is_the_card(theme):
    assert contrast(fill(0, "signed", low=-1, high=1, theme=theme), THEMES[theme]["card"]) < 1.05


def test_fill_clips_and_survives_an_empty_range():
    scale = colormap("probability")
    assert fill(-1, "probability") == scale[0] and fill(2, "probability") == scale[-1]
    assert fill(3, "energy", low=3, high=3) == colormap("energy")[0]


def test_known_contrasts():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#777777") == pytest.approx(1)
