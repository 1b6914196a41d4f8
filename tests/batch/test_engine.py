"""Whole batches: what they write, that they go on after a kill with nothing lost and nothing twice, and what they refuse."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet
import pytest
import torch

from lensplorer.batch import store
from lensplorer.batch.engine import run_batch
from lensplorer.errors import ConfigError, FormatError
from tests.batch.killed import OPTIONS

ROOT = Path(__file__).parents[2]
#: How many kills the suite makes; LENSPLORER_KILLS asks for more.
KILLS = int(os.environ.get("LENSPLORER_KILLS", "3"))


def write_prompts(path, count=30):
    words = ["Once", "upon", "a", "time", "there", "was", "boy", "girl", "dog"]
    rng = random.Random(0)
    rows = [{"prompt": " ".join(rng.choices(words, k=rng.randint(1, 12))), "name": f"row {at}"} for at in range(count)]
    rows[5] = {"prompt": 5}
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def content(out):
    """Every result file of a batch by name; the moment at which a TokenLens file's batch was begun is no result."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", ".lock"):
            data = path.read_bytes()
            if path.parts[-3] == "tokenlens":
                data = re.sub(rb'"timestamp": "[^"]*"', b'"timestamp": ""', data)
            if path.parent.name == "parts":  # its sizes are of the files, with their timestamps
                assert json.loads(data)["files"]
            found[str(path.relative_to(out))] = data
    return found


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def whole(storyworld, prompts, tmp_path_factory):
    """A batch that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    seen = []
    report = run_batch(prompts, out, loaded=storyworld, progress=seen.append, **OPTIONS)
    return out, report, seen


def test_a_batch_reports_what_it_wrote(whole):
    out, report, seen = whole
    assert report.prompts == 30 and report.errors == 1 and report.resumed == 0
    assert [progress.done for progress in seen] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert seen[-1].remaining == 0 and all(progress.rate > 0 for progress in seen)
    for name, rows in report.rows.items():
        assert pd.read_parquet(out / name).shape[0] == rows > 0
    assert len(list((out / "tokenlens" / "attribution_matrix").iterdir())) == 29


def test_pandas_polars_and_duckdb_read_the_same(whole):
    out = whole[0]
    for name in ("prompts", "runs", "token_scores", "logit_lens", "attribution_matrix"):
        frame = pd.read_parquet(out / name)
        lazy = pl.read_parquet(f"{out}/{name}/*.parquet")
        table = duckdb.sql(f"select * from read_parquet('{out}/{name}/*.parquet') order by prompt")
        assert len(frame) == lazy.height == len(table)
        assert frame.columns.tolist() == lazy.columns == table.columns
    surprisal = duckdb.sql(f"select avg(surprisal) from '{out}/token_scores/*.parquet' where position > 0").fetchall()[0][0]
    assert surprisal == pytest.approx(pl.read_parquet(f"{out}/token_scores/*.parquet").filter(pl.col("surprisal").is_not_nan())["surprisal"].mean())
    assert surprisal == pytest.approx(pd.read_parquet(out / "token_scores").surprisal.mean(), rel=1e-5)


def test_the_schema_is_the_documented_one(whole):
    """docs/batch.md lists the columns of every table and of token_scores."""
    said = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    for name in ("prompts", "runs", "token_scores"):
        schema = pyarrow.parquet.read_schema(next((whole[0] / name).glob("*.parquet")))
        for field in schema:
            assert f"`{field.name}`" in said, (name, field.name)


def test_doing_it_again_does_nothing(whole, storyworld, prompts):
    out, report, _ = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = run_batch(prompts, out, loaded=storyworld, progress=lambda _: pytest.fail("a part ran"), **OPTIONS)
    assert (again.prompts, again.errors, again.rows, again.resumed) == (30, 1, report.rows, 30)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


def test_a_lost_or_cut_file_is_made_again(whole, storyworld, prompts, tmp_path):
    out = tmp_path / "out"
    run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    (out / "token_scores" / "part-00002.parquet").unlink()
    cut = out / "logit_lens" / "part-00004.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    (out / "runs" / ".part-00001.parquet.abc.tmp").write_text("left by a kill")
    report = run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    assert report.resumed == 22 and content(out) == content(whole[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_at_random_moments_it_ends_up_the_same(storyworld, tmp_path):
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 12 * KILLS), tmp_path / "out"
    command = [sys.executable, "-W", "ignore", "-m", "tests.batch.killed", str(prompts), str(out), str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == KILLS  # each was killed in the middle, none had ended
    for path in out.rglob("*.parquet"):
        pyarrow.parquet.read_table(path)  # nothing half-written under a final name
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: a sum's last bit depends on the number of threads
    try:
        resumed = run_batch(prompts, out, loaded=storyworld, **OPTIONS)
        whole = run_batch(prompts, tmp_path / "whole", loaded=storyworld, **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    assert 0 < resumed.resumed < resumed.prompts
    assert resumed.prompts == whole.prompts == 12 * KILLS and resumed.rows == whole.rows
    assert content(out) == content(tmp_path / "whole")


def test_a_full_disk_stops_with_an_error_and_goes_on_later(whole, storyworld, prompts, tmp_path, monkeypatch):
    """The disk fills in the middle of the fourth part's second file."""
    out, count, write = tmp_path / "out", [0], pyarrow.parquet.write_table

    def full(table, where, **options):
        count[0] += 1
        if count[0] == 17:
            Path(where).write_bytes(b"half a fi")
            raise OSError(28, "No space left on device")
        write(table, where, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(FormatError, match="No space left"):
        run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    for path in out.rglob("*.parquet"):
        pyarrow.parquet.read_table(path)
    assert not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    assert content(out) == content(whole[0])


def test_another_batch_is_refused_and_says_what_differs(whole, storyworld, prompts, tiny_model, tmp_path, monkeypatch):
    out = whole[0]
    before = content(out)
    with pytest.raises(FormatError, match=r"part_size \(4 then, 5 now\)"):
        run_batch(prompts, out, loaded=storyworld, **{**OPTIONS, "part_size": 5})
    with pytest.raises(FormatError, match="requests"):
        run_batch(prompts, out, loaded=storyworld, **{**OPTIONS, "analyses": ["token_scores"]})
    with pytest.raises(FormatError, match="the input's content"):
        run_batch(write_prompts(tmp_path / "other.jsonl", 29), out, loaded=storyworld, **OPTIONS)
    with pytest.raises(FormatError, match="the model's weights"):
        run_batch(prompts, out, loaded=tiny_model("gpt2"), **OPTIONS)
    monkeypatch.setattr(store, "__version__", "99")
    with pytest.raises(FormatError, match="lensplorer's version"):
        run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    assert content(out) == before


def test_folders_that_are_not_for_this(storyworld, prompts, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FormatError, match=r"not empty and holds no batch: thesis\.txt"):
        run_batch(prompts, tmp_path / "mine", loaded=storyworld, **OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="cannot be made"):
        run_batch(prompts, tmp_path / "file" / "out", loaded=storyworld, **OPTIONS)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(FormatError, match="not of this kind"):
        run_batch(prompts, tmp_path / "old", loaded=storyworld, **OPTIONS)
    (tmp_path / "old" / "manifest.json").write_text('{"format"')
    with pytest.raises(FormatError, match="no valid JSON"):
        run_batch(prompts, tmp_path / "old", loaded=storyworld, **OPTIONS)


def test_two_processes_do_not_write_one_folder(storyworld, prompts, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FormatError, match="Another process"):
            run_batch(prompts, out, loaded=storyworld, **OPTIONS)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_damaged_record_of_a_part_is_named(storyworld, prompts, tmp_path):
    out, options = tmp_path / "out", {"analyses": ["token_scores"], "part_size": 20, "loaded": storyworld}
    run_batch(prompts, out, **options)
    (out / "parts" / "part-00001.json").write_text('{"files": {}}')
    with pytest.raises(FormatError, match=r"part-00001\.json.*damaged"):
        run_batch(prompts, out, **options)


def test_options_are_checked_before_anything_is_written(storyworld, prompts, tmp_path):
    out = tmp_path / "out"
    for wrong, said in (
        ({"analyses": []}, "No analysis"),
        ({"analyses": ["token_scores"], "engine": "rey"}, "'ray'"),
        ({"analyses": ["token_scores"], "workers": 0}, "workers"),
        ({"analyses": ["token_scores"], "id_column": "nmae"}, "'name'"),
        ({"analyses": [{"name": "attribute", "target": {"column": "answer"}}]}, "no column 'answer'"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_batch(prompts, out, loaded=storyworld, **wrong)
    assert not out.exists()


def test_without_ray_the_error_says_what_to_install(storyworld, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "lensplorer\[ray\]"'):
        run_batch(prompts, tmp_path / "out", loaded=storyworld, engine="ray", **OPTIONS)
