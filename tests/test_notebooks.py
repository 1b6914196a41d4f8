"""Every notebook runs, offline, and its kept outputs show something: one kernel for all of them, a cell's error fails the test."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def the_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """path → (notebook, error), in one kernel that cannot reach a hub and writes nothing into the repository."""
    script, home = the_script(), tmp_path_factory.mktemp("notebooks")
    script.ENVIRONMENT |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    kernel = script.start_kernel()
    yield lambda path: script.execute(path, kernel)
    kernel.shutdown_kernel(now=True)
    kernel.cleanup_resources()
    shutil.rmtree(home, ignore_errors=True)


def test_eight_subjects() -> None:
    assert len(NOTEBOOKS) >= 8


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of the kernel's client, closed by the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, execute) -> None:
    _, error = execute(path)
    assert not error, error


def test_a_failing_cell_is_found(tmp_path, execute) -> None:
    path = tmp_path / "failing.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), str(path))
    assert "ZeroDivisionError" in execute(path)[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_readable_without_running(path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells)
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert path.stat().st_size < 1_000_000
