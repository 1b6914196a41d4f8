"""Environments of other programs, which cannot be installed beside TransformerLens, and the scripts that run in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.missing import missing

#: The scripts are for another Python: they import the other program.
collect_ignore = ["in_inseq.py", "in_circuit_tracer.py"]


@pytest.fixture(scope="session")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Callable[..., Any]]:
    """(program, its packages, script) → runs the script in an environment of its own and gives the JSON that it prints, or None.

    Only these packages are installed there; PyTorch, transformers and Captum are borrowed from this environment.
    """

    def made(program: str, packages: list[str], script: Path) -> Callable[..., Any]:
        folder = tmp_path_factory.mktemp("peer") / "env"
        venv.create(folder, with_pip=True, symlinks=True)
        python = folder / "bin" / "python"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_CONSTRAINT")}
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *packages]
        done = subprocess.run(install, capture_output=True, text=True, env=environment)
        if done.returncode:
            missing(f"{program} cannot be installed, for which a package index is needed: {done.stderr[-500:]}", f"the tests with {program}")
        borrowed = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "borrowed.pth"
        borrowed.write_text(sysconfig.get_paths()["purelib"] + "\n")

        def run(*arguments: object, cwd: Path | None = None) -> Any:
            command = [str(python), "-W", "ignore", str(script), *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"})
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(done.stdout) if done.stdout.strip() else None

        return run

    return made
