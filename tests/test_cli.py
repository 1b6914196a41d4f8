"""The command line: what it prints, and that an error is one line and an exit code, never a traceback."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lensplorer import __version__
from lensplorer.cli import app

runner = CliRunner()


def test_version():
    assert runner.invoke(app, ["--version"]).output.strip() == __version__


def test_models_are_listed_and_searched():
    everything = runner.invoke(app, ["models"]).output.split()
    assert everything[:2] == ["storyworld", "storyworld-mini"] or "storyworld" in everything
    found = runner.invoke(app, ["models", "PYTHIA"]).output.split()
    assert found and all("pythia" in name.lower() for name in found)
    assert set(found) < set(everything)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["models", "no-such-thing"], "no-such-thing", 1),
        (["explore", "--model", "storywrold"], "storyworld", 1),
        (["explore", "--input", "/nowhere/prompt.txt"], "/nowhere/prompt.txt", 1),
        (["explore", "--config", "/nowhere/config.toml"], "/nowhere/config.toml", 1),
        (["explore", "--model", "/nowhere/model"], "/nowhere/model", 1),
        (["explore", "--no-such-option"], "--no-such-option", 2),
        (["explore", "--seed", "x"], "x", 2),
        (["explroe"], "explore", 2),
    ],
)
def test_errors_are_clear_and_have_a_code(arguments, said, code):
    result = runner.invoke(app, [*arguments[:1], "--port", "0", *arguments[1:]] if arguments[0] == "explore" else arguments)
    assert result.exit_code == code
    assert said in result.stderr and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_folder_without_config_and_an_empty_prompt_file(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "prompt.txt").write_text("")
    folder = runner.invoke(app, ["explore", "--port", "0", "--model", str(tmp_path)])
    assert folder.exit_code == 1 and "config.json" in folder.stderr
    prompt = runner.invoke(app, ["explore", "--input", str(tmp_path / "prompt.txt")])
    assert prompt.exit_code == 1 and "empty" in prompt.stderr


def test_explore_offers_the_options_of_the_contract():
    said = runner.invoke(app, ["explore", "--help"], env={"COLUMNS": "200"}).output
    for option in (
        "--input",
        "--model",
        "--bf16",
        "--seed",
        "--config",
        "--layer-prob",
        "--cross-layer",
        "--sae-config",
        "--port",
        "--address",
        "--token",
        "--allow-host",
        "--model-dir",
    ):
        assert option in said
    assert "[model]" in said and "[[sae]]" in said


def test_the_log_level_comes_from_the_environment(monkeypatch):
    import logging

    assert runner.invoke(app, ["models", "storyworld"], env={"LENSPLORER_LOG_LEVEL": "debug"}).exit_code == 0
    assert logging.getLogger("lensplorer").level == logging.DEBUG
    monkeypatch.setattr(logging.getLogger("lensplorer"), "level", logging.NOTSET)
    wrong = runner.invoke(app, ["models"], env={"LENSPLORER_LOG_LEVEL": "loud"})
    assert wrong.exit_code == 1 and "expected debug, info" in wrong.stderr
