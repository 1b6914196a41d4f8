"""The real Inseq 0.7.1 opens what is written here, and what it writes is read here as it reads it.

It needs another typeguard than TransformerLens, so it gets an environment of its own: its few own packages are installed there, and PyTorch,
transformers and Captum are borrowed from this one. Takes half a minute and a package index; without one it is skipped, and under CI=true fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
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
def in_inseq(tmp_path_factory):
    """Runs the script in an environment with the real Inseq; returns what it prints."""
    folder = tmp_path_factory.mktemp("inseq") / "env"
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_CONSTRAINT")}
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, env=environment)
    if done.returncode:
        missing = f"Inseq cannot be installed: {done.stderr[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    borrowed = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "borrowed.pth"
    borrowed.write_text(sysconfig.get_paths()["purelib"] + "\n")

    def run(*arguments: object) -> str:
        command = [str(python), "-W", "ignore", str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=MODELS, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


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
    in_inseq("write", "storyworld", theirs)
    files = [*(tmp_path / name for name in written), *sorted(theirs.iterdir())]
    said = json.loads(in_inseq("read", *files))

    for name, contents in written.items():
        heard = said[str(tmp_path / name)]
        assert_read_alike(contents, heard)
        for content, sequence in zip(contents, heard["sequences"]):
            assert sequence["shown"] and sequence["kind"] == "CoarseFeatureAttributionSequenceOutput"
            assert sequence["source"] == as_inseq_says(content)["target"][: content.start]
    assert len(list(theirs.iterdir())) == 6
    for path in theirs.iterdir():
        assert_read_alike(read_inseq(path), said[str(path)])
