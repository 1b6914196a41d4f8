"""``lensplorer batch``: what it prints, what it leaves, its exit codes, and no traceback."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

from lensplorer.cli import app

runner = CliRunner()


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("Once upon a time\nThe capital of France is\n")
    return tmp_path / "prompts.txt"


def test_flags_and_a_file_ask_for_the_same(prompts, tmp_path):
    flags = ["--analysis", "next_token", "--set", "next_token.k=2", "--analysis", "token_scores", "--part-size", "1", "--model", "storyworld-mini"]
    result = runner.invoke(app, ["batch", str(prompts), "--out", str(tmp_path / "flags"), *flags])
    assert result.exit_code == 0, result.output
    assert "2 prompts" in result.stdout and "2 of 2 prompts" in result.stderr and "a second" in result.stderr
    (tmp_path / "batch.toml").write_text(
        '[batch]\nmodel = "storyworld-mini"\npart_size = 9\n[[analysis]]\nname = "next_token"\nk = 2\n[[analysis]]\nname = "token_scores"\n'
    )
    arguments = ["batch", str(prompts), "--config", str(tmp_path / "batch.toml"), "--out", str(tmp_path / "toml")]
    result = runner.invoke(app, [*arguments, "--part-size", "1"])
    assert result.exit_code == 0, result.output
    for name in ("next_token", "token_scores", "runs", "prompts"):
        one, other = pd.read_parquet(tmp_path / "flags" / name), pd.read_parquet(tmp_path / "toml" / name)
        pd.testing.assert_frame_equal(one, other)
    assert len(pd.read_parquet(tmp_path / "toml" / "next_token")) == 4
    again = runner.invoke(app, [*arguments, "--part-size", "1"])
    assert again.exit_code == 0 and "2 of them done before" in again.stdout
    other = runner.invoke(app, arguments)
    assert other.exit_code == 1 and "part_size (1 then, 9 now)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--analysis", "token_scors"], "token_scores", 1),
        ([], "No analysis is asked for", 1),
        (["--analysis", "token_scores", "--set", "token_scores"], "ANALYSIS.OPTION=VALUE", 1),
        (["--analysis", "token_scores", "--column", "question"], "no column 'question'", 1),
        (["--analysis", "token_scores", "--model", "storywrold"], "storyworld", 1),
        (["--analysis", "token_scores", "--config", "/nowhere.toml"], "/nowhere.toml", 1),
        (["--analysis", "token_scores", "--engine", "rey"], "'ray'", 1),
        (["--analysis", "token_scores", "--part-size", "0"], "part-size", 2),
        (["--analyses", "token_scores"], "--analyses", 2),
    ],
)
def test_errors_are_one_line_and_leave_nothing(prompts, tmp_path, arguments, said, code):
    result = runner.invoke(app, ["batch", str(prompts), "--out", str(tmp_path / "out"), *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "content", "said"), [("no.txt", None, "no input"), ("a.jsonl", "{", "Line 1"), ("a.txt", "", "no prompts")])
def test_bad_inputs(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    result = runner.invoke(app, ["batch", str(tmp_path / name), "--out", str(tmp_path / "out"), "--analysis", "token_scores"])
    assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
