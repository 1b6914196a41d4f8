"""Tables hold every number of a result under its index; figures stand alone."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lensplorer as lp
from lensplorer.errors import AnalysisError, FormatError
from lensplorer.formats.tables import table_of
from tests.ui.conftest import find_browser


@pytest.fixture(scope="module")
def trace(storyworld):
    return lp.run_trace(storyworld, 'Once upon a time, "there"\nwas')


def rows_of(result):
    """The slow way: a row per variable and index, (variable, index) → value."""
    return {
        (name, tuple(sorted((dim, int(i)) for dim, i in zip(variable.dims, index)))): value
        for name, variable in result.data_vars.items()
        for index, value in np.ndenumerate(variable.values)
    }


@pytest.mark.parametrize("name", ["token_scores", "next_token", "logit_lens", "residual_norms", "attention_patterns", "head_statistics"])
def test_a_table_holds_every_number_once(trace, name):
    result = getattr(lp, name)(trace)
    table, found = table_of(result), {}
    for _, row in table.iterrows():
        for variable in result.data_vars:
            dims = result[variable].dims
            others = [dim for dim in result.dims if dim not in dims and dim in table]
            if any(pd.isna(row[dim]) for dim in dims) or any(not pd.isna(row[dim]) for dim in others):
                continue
            index = tuple(sorted((dim, int(np.flatnonzero(result[dim].values == row[dim])[0])) for dim in dims))
            assert (variable, index) not in found
            found[variable, index] = row[variable]
    expected = rows_of(result)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, str):
            assert found[key] == value
        else:
            np.testing.assert_equal(float(found[key]), float(value))


def test_a_result_without_dimensions_is_one_row():
    assert table_of(xr.Dataset({"total": ((), 3.0)})).to_dict("records") == [{"total": 3.0}]


def test_csv_parquet_and_netcdf_hold_the_same(trace, tmp_path):
    result = lp.logit_lens(trace)
    for suffix in ("csv", "parquet", "nc"):
        assert lp.export_table(result, tmp_path / f"a.{suffix}") == tmp_path / f"a.{suffix}"
    parquet, csv = pd.read_parquet(tmp_path / "a.parquet"), pd.read_csv(tmp_path / "a.csv", keep_default_na=False, na_values=[""])
    expected = table_of(result)
    pd.testing.assert_frame_equal(parquet, expected, check_dtype=False)
    assert csv.columns.tolist() == expected.columns.tolist() and len(csv) == len(expected)
    np.testing.assert_allclose(csv.entropy, expected.entropy, rtol=1e-6)
    assert csv.token.tolist() == expected.token.tolist()  # quotes, commas and newlines
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as netcdf:
        np.testing.assert_array_equal(netcdf.entropy.values, result.entropy.values)
        assert netcdf.attrs["analysis"] == "logit_lens" and [str(text) for text in netcdf.token.values] == list(result.token.values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.nc", "a.parquet"]


@pytest.mark.parametrize(("name", "said"), [("a.parqet", "'.parquet'"), ("a", "'.csv'"), ("a.xlsx", "names no table format")])
def test_an_unknown_table_format(trace, tmp_path, name, said):
    with pytest.raises(FormatError, match=said):
        lp.export_table(lp.residual_norms(trace), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_page_stands_alone(trace, tmp_path):
    path = lp.export_figure(lp.residual_norms(trace), tmp_path / "norms.html")
    page = path.read_text(encoding="utf-8")
    assert "<title>residual_norms of storyworld</title>" in page
    tags = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    assert "<script" in tags and not re.search(r"<(script|link|img)[^>]+(src|href)=", tags)  # nothing is fetched
    element = lp.export_figure(lp.draw(lp.residual_norms(trace)), tmp_path / "element.html")
    assert "<title>element</title>" in element.read_text(encoding="utf-8")


@pytest.mark.skipif(find_browser() is None, reason="no browser here")
def test_pictures_are_drawn_by_the_browser(trace, tmp_path):
    result = lp.residual_norms(trace)
    svg = lp.export_figure(result, tmp_path / "norms.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "layer" in svg
    assert lp.export_figure(result, tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_picture_lacks_is_named(trace, tmp_path, monkeypatch):
    monkeypatch.setenv("LENSPLORER_BROWSER", str(tmp_path / "no-browser"))
    with pytest.raises(FormatError, match=r"LENSPLORER_BROWSER"):
        lp.export_figure(lp.residual_norms(trace), tmp_path / "norms.png")
    monkeypatch.setitem(__import__("sys").modules, "playwright.sync_api", None)
    with pytest.raises(FormatError, match="pip install playwright"):
        lp.export_figure(lp.residual_norms(trace), tmp_path / "norms.svg")
    with pytest.raises(FormatError, match=r"'\.svg'"):
        lp.export_figure(lp.residual_norms(trace), tmp_path / "norms.sgv")
    with pytest.raises(AnalysisError, match="no view"):
        lp.export_figure(xr.Dataset(attrs={"analysis": "nonsense"}), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_visualize_draws_as_draw_does(trace):
    result = lp.token_scores(trace)
    assert repr(lp.visualize(result, theme="dark")) == repr(lp.draw(result))
