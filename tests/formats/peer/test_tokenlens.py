"""TokenLens' own Python schema, sample and page take what is written here, where they are at hand.

Its sources are in no package index. With LENSPLORER_TOKENLENS, a folder of them in the state that has ``src/`` and ``ui/`` (fe341e8), its schema and
sample are asked; with LENSPLORER_TOKENLENS_PAGE too, the address at which its page runs out of that folder, as its README says, files are put into
the page's data and looked at in a browser. Without them the tests are skipped, loudly.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import lensplorer as lp
from lensplorer.formats.tokenlens import from_tokenlens, to_tokenlens
from tests.formats import tokenlens_rules as rules
from tests.formats.test_tokenlens import changed, theirs
from tests.missing import missing

SOURCES, PAGE = "LENSPLORER_TOKENLENS", "LENSPLORER_TOKENLENS_PAGE"


@pytest.fixture(scope="module")
def sources():
    folder = Path(os.environ.get(SOURCES, "none"))
    if not (folder / "ui" / "src" / "utils" / "data.ts").is_file():
        missing(
            f"{SOURCES} names no folder with TokenLens' sources: clone KaiserRuben/TokenLense at fe341e8 and name it there",
            "the tests with TokenLens",
            in_ci=False,
        )
    return folder


@pytest.fixture(scope="module")
def page_address():
    if not os.environ.get(PAGE):
        what = f"{PAGE} is not set: start TokenLens' page in {SOURCES}/ui as its README says, and give its address"
        missing(what, "the test in TokenLens' page", in_ci=False)
    return os.environ[PAGE]


@pytest.fixture
def written(explained):
    """Documents by name: what is written of a generation, of its inputs alone, of an Inseq file, and of files shaped as theirs."""
    content = explained[2]
    scores = content.scores.copy()
    scores[:, 5:] = np.nan
    inseq = lp.read_inseq(Path(__file__).parents[1] / "data" / "occlusion.json")[0]
    contents = {"generation": content, "inputs": changed(content, scores=scores), "inseq": inseq, "theirs": from_tokenlens(theirs())}
    found = {}
    for hour, (name, content) in enumerate(contents.items()):  # the page tells files apart by their time
        found[name] = to_tokenlens(changed(content, model=f"lensplorer {name}", version="", timestamp=f"2026-01-01T{hour:02}:00:00+00:00"))
    return found


def test_its_python_schema(sources, written):
    spec = importlib.util.spec_from_file_location("tokenlens_schema", sources / "src" / "persistence" / "schema.py")
    schema = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = schema
    spec.loader.exec_module(schema)
    assert [version.value for version in schema.DataVersion] == rules.VERSIONS
    assert {source.value for source in schema.AttributionSource} == set(rules.SOURCES)
    for document in written.values():
        loaded = schema.AnalysisResult.model_validate_json(json.dumps(document))
        assert loaded.data.association_matrix == document["data"]["association_matrix"]


def test_its_sample(sources):
    document = json.loads((sources / "ui" / "src" / "data" / "sample.json").read_text(encoding="utf-8"))
    rules.assert_accepted(document)
    read = from_tokenlens(document)
    rules.assert_accepted(to_tokenlens(read))
    given = np.array(document["data"]["association_matrix"])
    np.testing.assert_array_equal(np.nan_to_num(read.scores), np.float32(given))


@pytest.mark.browser
def test_its_page(sources, page_address, written, browser):
    """Each file is listed, and its matrix is drawn with the shares that were written."""
    data = sources / "ui" / "src" / "data"
    before = len(list(data.glob("*.json")))
    paths = {name: data / f"lensplorer_{name}.json" for name in written}
    try:
        for name, path in paths.items():
            path.write_text(json.dumps(written[name]), encoding="utf-8")
        page = browser.new_page()
        page.goto(page_address)
        page.get_by_text(f"Showing {before + len(paths)} analysis results").wait_for(timeout=60_000)
        for name, document in written.items():
            page.get_by_text(f"lensplorer {name}", exact=True).first.dispatch_event("click")  # a shimmer lies over the card
            page.get_by_text("Association Matrix", exact=True).first.click(timeout=60_000)
            page.locator("div.w-4.h-4.border").first.wait_for(timeout=60_000)
            styles = page.locator("div.w-4.h-4.border").evaluate_all("cells => cells.map(cell => cell.getAttribute('style') || '')")
            drawn = [float(share.group(1)) if (share := re.search(r"-rgb\), ([\d.e-]+)\)", style)) else 0.0 for style in styles]
            shares = np.array(document["data"]["normalized_association"])
            np.testing.assert_allclose(np.array(drawn).reshape(shares.shape), shares, atol=1e-6, err_msg=name)
            page.get_by_text("Back to Overview").dispatch_event("click")
        page.close()
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
