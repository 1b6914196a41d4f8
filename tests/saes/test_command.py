"""``lensplorer saes``."""

from __future__ import annotations

from typer.testing import CliRunner

from lensplorer.cli import app


def test_saes_are_listed_by_words():
    done = CliRunner().invoke(app, ["saes", "gpt2-small-res-jb", "blocks.8.hook_resid_pre"])
    assert done.exit_code == 0
    first, *rest = done.stdout.splitlines()
    assert first.split() == ["release", "sae_id", "model", "hook", "width", "l0"]
    assert rest[0].split()[:4] == ["gpt2-small-res-jb", "blocks.8.hook_resid_pre", "gpt2-small", "blocks.8.hook_resid_pre"]


def test_a_long_list_says_how_much_is_left():
    done = CliRunner().invoke(app, ["saes", "gemma", "--limit", "3"])
    assert len(done.stdout.splitlines()) == 4 and "more: add words" in done.stderr


def test_nothing_found_is_an_error():
    done = CliRunner().invoke(app, ["saes", "zzz", "yyy"])
    assert done.exit_code == 1 and "No SAE has 'zzz yyy'" in done.stderr
