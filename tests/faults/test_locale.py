"""A locale that is not UTF-8 changes neither what is read and written nor whether the command line speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**ASCII, **more}, capture_output=True, timeout=300)


@pytest.mark.parametrize("command", [["--help"], ["explore", "--help"], ["serve", "--help"], ["batch", "--help"], ["models"]], ids=" ".join)
def test_the_command_line_speaks(command):
    done = run("-m", "lensplorer.cli", *command)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_an_error_is_one_sentence():
    done = run("-m", "lensplorer.cli", "batch", "nö.txt", "--out", "nowhere", "--analysis", "token_scores")
    assert done.returncode == 1 and b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1, done.stderr


_SAVE = """
import locale, sys
import lensplorer as lp
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), "the locale is UTF-8 after all"
session = lp.Session(lp.load_model("storyworld"), "Once upon a")
session.decoding = lp.DecodingParams(stop_sequences=("\\u2026 \\u00e9\\u4e2d",))
session.save(sys.argv[1])
other = lp.Session(session.model)
other.load(sys.argv[1])
assert other.state == session.state and other.decoding == session.decoding
"""


def test_a_session_is_saved_and_loaded(tmp_path):
    done = run("-c", _SAVE, str(tmp_path / "session.json"))
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "… é中" in (tmp_path / "session.json").read_text(encoding="utf-8")
