"""Every notebook runs, offline, and its kept outputs show something. One kernel runs them all, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """notebooks/execute.py in a home of its own, so that nothing kept from before is used and nothing is left behind."""
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(FOLDER / "execute.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """All of them and one that fails, run once: what was said, and the folder of the results."""
    folder = tmp_path_factory.mktemp("notebooks")
    failing = folder / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), str(failing))
    return run(folder / "home", "--out", str(folder / "out"), str(failing), *(path.name for path in NOTEBOOKS)), folder / "out"


def test_all_subjects_are_there() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == list("12345678")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, ran) -> None:
    result, out = ran
    said = result.stderr.partition(f"{path.name}: ")[2]
    assert said and not said.startswith("FAILED"), result.stderr[-3000:]
    assert shown(out / path.name) == shown(path), "make notebooks renews the outputs"


def shown(path: Path) -> list[list[list[str]]]:
    """The kinds of each cell's tables, values and pictures; what is printed may come in one piece or several."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [[sorted(output.data) for output in cell.outputs if "data" in output] for cell in cells]


def test_a_failing_cell_is_an_error(ran) -> None:
    result, _ = ran
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr
    assert result.stderr.count("FAILED") == 1, result.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_readable_without_running(path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert path.stat().st_size < 1_000_000
