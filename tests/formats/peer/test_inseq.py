"""The real Inseq 0.7.1 opens and shows what is written here, and what it writes is read here as it reads it.

It needs another typeguard than TransformerLens, so it gets an environment of its own. Takes half a minute and a package index; without one it is
skipped, and under CI=true fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import lensplorer as lp
from lensplorer.formats.inseq import read_inseq, write_inseq
from tests.formats.test_inseq import as_inseq_says, assert_read_alike

SCRIPT = Path(__file__).parent / "in_inseq.py"
MODELS = Path(lp.__file__).parent / "storyworld" / "data"
PACKAGES = ["inseq==0.7.1", "typeguard==2.13.3", "treescope", "jaxtyping", "wadler-lindig", "rich", "matplotlib"]
PACKAGES += ["contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing"]


@pytest.fixture(scope="module")
def in_inseq(other_python):
    return other_python("Inseq", PACKAGES, SCRIPT)


def test_both_ways(in_inseq, explained, tmp_path):
    trace, _, content = explained
    gradients = lp.run_trace(trace.model, trace.tokens.tolist(), gradients=True)
    saliency = lp.attributions(gradients, lp.attribution_matrix(gradients, 5, method="saliency"))
    written = {"one.json": [content], "two.json": [saliency, saliency], "packed.json.gz": [content]}
    for name, contents in written.items():
        write_inseq(tmp_path / name, contents)
    lp.write_tokenlens(tmp_path / "tokenlens.json", content)
    converted = lp.read_tokenlens(tmp_path / "tokenlens.json")
    write_inseq(tmp_path / "converted.json", converted)
    written["converted.json"] = [converted]

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    in_inseq("write", "storyworld", theirs, cwd=MODELS)
    files = [*(tmp_path / name for name in written), *sorted(theirs.iterdir())]
    said = in_inseq("read", *files)

    for name, contents in written.items():
        heard = said[str(tmp_path / name)]
        assert_read_alike(contents, heard)
        for content, sequence in zip(contents, heard["sequences"]):
            assert sequence["shown"] and sequence["kind"] == "CoarseFeatureAttributionSequenceOutput"
            assert sequence["source"] == as_inseq_says(content)["target"][: content.start]
        for viewer, shown in heard["viewed"].items():
            words = {word for content in contents for piece in content.pieces[1:] if (word := piece.strip("Ġ"))}
            assert all(word in shown for word in words) and "nan" not in shown.lower(), (name, viewer)
    assert len(list(theirs.iterdir())) == 6
    for path in theirs.iterdir():
        assert_read_alike(read_inseq(path), said[str(path)])
