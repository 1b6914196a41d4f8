"""Two Ray actors give the rows of one process. Starting Ray and two models takes a minute: run by ``make peers``, not with the suite.

LENSPLORER_RAY=1 asks for it.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lensplorer.batch.engine import run_batch
from tests.batch.killed import OPTIONS
from tests.batch.test_engine import content, write_prompts

pytestmark = [
    pytest.mark.skipif(os.environ.get("LENSPLORER_RAY") != "1", reason="Ray takes a minute to start: make peers"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of deprecations and of sockets it leaves to its processes
]


def test_two_actors_give_the_rows_of_one_process(storyworld, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    seen = []
    alone = run_batch(prompts, tmp_path / "alone", **OPTIONS)
    report = run_batch(prompts, tmp_path / "ray", engine="ray", workers=2, progress=seen.append, **OPTIONS)
    assert (report.prompts, report.errors, report.rows) == (alone.prompts, alone.errors, alone.rows)
    assert len(seen) == 8 and seen[-1].done == 30
    assert_same_rows(tmp_path / "ray", tmp_path / "alone")
    (tmp_path / "ray" / "token_scores" / "part-00003.parquet").unlink()  # begun by Ray, ended here
    assert run_batch(prompts, tmp_path / "ray", **OPTIONS).resumed == 26
    assert_same_rows(tmp_path / "ray", tmp_path / "alone")
    hashes = [json.loads((tmp_path / name / "manifest.json").read_text())["hash"] for name in ("ray", "alone")]
    assert hashes[0] == hashes[1]


def assert_same_rows(one, other):
    """The same files with the same rows; numbers within 1e-5, since an actor has another number of threads than this process."""
    assert content(one).keys() == content(other).keys()
    tables = [path.relative_to(other) for path in other.rglob("*.parquet")]
    assert len(tables) == 5 * 8
    for name in tables:
        found, expected = pq.read_table(one / name).to_pandas(), pq.read_table(other / name).to_pandas()
        numbers = expected.select_dtypes("floating").columns
        exact = [column for column in expected.columns if column not in numbers and column != "attributes"]
        pd.testing.assert_frame_equal(found[exact], expected[exact])
        for column in numbers:
            scale = max(1.0, float(expected[column].abs().max(skipna=True) or 0))
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-5, atol=1e-5 * scale, err_msg=f"{name} {column}")
