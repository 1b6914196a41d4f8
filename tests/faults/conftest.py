"""A page on a tiny model, and a whole file of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lensplorer.dashboard import keeping
from lensplorer.dashboard.options import Options
from lensplorer.interventions import ablate_mlp, patch, steer
from lensplorer.sampling.grammars import Constraint
from lensplorer.trace import run_trace
from tests.dashboard.conftest import Driver

KEY = "0123456789abcdef" * 2
PROMPT = "the cat sat on"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder is an empty one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def model(tiny_model: Any) -> Any:
    return tiny_model("gpt2")


def walked(model: Any) -> Driver:
    """A page with something of everything that is saved."""
    driver = Driver(Options(prompt=PROMPT, seed=1), model)
    driver("append")
    driver("branch")
    driver("constrain", kind="regex", text="(.|\n)*")
    driver("set_decoding", name="stop_sequences", value="zzzz")
    driver("sample")
    driver("append")
    driver("put_cursor", to=2)
    driver("go_to_view", index=2)
    driver("set_control", panel="interventions", name="towards", value=" warm")
    clean = run_trace(model, [5, 17, 41, 100])
    driver.session.intervene(ablate_mlp(0, positions=[1]), patch("blocks.0.hook_resid_pre", clean, positions=2), steer(("a", "b"), 1))
    assert isinstance(driver.session.constraint, Constraint) and driver.session.state.prompts[1].choices
    return driver


@pytest.fixture
def page(model: Any, home: Path) -> Driver:
    return walked(model)


@pytest.fixture
def content(page: Driver) -> dict[str, Any]:
    """A whole file, as plain data."""
    keeping.autosave(page.explorer, KEY)
    path = keeping.autosaved(KEY)
    assert path is not None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return found
