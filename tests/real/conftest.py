"""A real model: SmolLM2-135M-Instruct in one GGUF file, which ``make real-model`` fetches into an ignored folder.

Without it these tests are skipped, loudly; under CI=true that is a failure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.missing import missing

FILE = Path(__file__).parents[2] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def real_file() -> Path:
    """The file."""
    if not FILE.is_file():
        missing(f"There is no {FILE.relative_to(FILE.parents[1])}: `make real-model` fetches it", "the tests on a real model")
    return FILE


@pytest.fixture(scope="session")
def real(real_file: Path) -> Any:
    """The model as it loads by default, loaded once for the whole run: leave no hooks behind."""
    from lensplorer.models import load_model

    return load_model(str(real_file))


@pytest.fixture(scope="session")
def real_bridge(real_file: Path) -> Any:
    """The same on the other backend."""
    from lensplorer.models import load_model

    return load_model(str(real_file), backend="bridge")
