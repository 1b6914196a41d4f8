"""Run the notebooks and keep their outputs.

    python notebooks/execute.py                         all of them, in place
    python notebooks/execute.py 3_circuits.ipynb        one
    python notebooks/execute.py --out FOLDER            the results go there, the notebooks stay as they are

One kernel runs them all, emptied between two, so that the heavy imports are paid for once. Exit code 1 if a cell fails; the others still run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
#: A kernel that says nothing about the machine: no progress bars, no colours, no hub.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "LENSPLORER_MODEL": "storyworld",
}
EMPTY = "%reset -f"
#: What a still page shows. Scripts and interactive figures, megabytes of them, are left out.
KEPT = ("text/plain", "text/html", "text/markdown", "image/png")


def notebooks() -> list[Path]:
    """All of them, in their order."""
    return sorted(HERE.glob("*.ipynb"))


def start_kernel() -> KernelManager:
    """A kernel in this folder's Python."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **ENVIRONMENT}, cwd=str(HERE))
    return manager


def execute(path: Path, kernel: KernelManager) -> tuple[Any, str]:
    """The notebook with fresh outputs, and what went wrong, empty if nothing."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(EMPTY))
    error = ""
    try:
        NotebookClient(notebook, km=kernel, timeout=120, record_timing=False).execute()
    except CellExecutionError as failure:
        error = str(failure)
    del notebook.cells[0]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
        cell.metadata = {}
        cell.outputs = [output for output in map(still, cell.outputs) if output is not None]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
    }
    return notebook, error


def still(output: Any) -> Any:
    """An output without what a still page cannot show; None when nothing is left."""
    if "data" not in output:
        return output
    output.data = {kind: value for kind, value in output.data.items() if kind in KEPT and "<script" not in value}
    return output if output.data else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks and keep their outputs.")
    parser.add_argument("names", nargs="*", help="files, or names in this folder; all when none is given")
    parser.add_argument("--out", type=Path, help="where the results go; in place when not given")
    asked = parser.parse_args()
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
    kernel, failed = start_kernel(), 0
    try:
        for path in [path if (path := Path(name)).exists() else HERE / path.name for name in asked.names] or notebooks():
            began = time.monotonic()
            notebook, error = execute(path, kernel)
            nbformat.write(notebook, (asked.out or path.parent) / path.name)
            failed += bool(error)
            sys.stderr.write(f"{path.name}: {f'FAILED{os.linesep}{error}' if error else f'{time.monotonic() - began:.1f} s'}\n")
    finally:
        kernel.shutdown_kernel(now=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
