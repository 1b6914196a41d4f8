"""Shared fixtures: tiny models of every architecture, loaded once per session through ``load_model`` itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test asks a hub for anything
# For tiny models a second thread costs more than it brings, and it rounds differently from run to run. Processes of the tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import tiny
from tests.missing import SKIPPED, missing


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """architecture → folder of the tiny model in Hugging Face format, made on first use."""
    made: dict[str, Any] = {}

    def folder(name: str) -> Any:
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp("models") / "tiny")
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Callable[[str], Any]) -> Callable[..., Any]:
    """(architecture, **load_model options) → the loaded tiny model, shared: leave no hooks behind."""
    from lensplorer.models import load_model

    loaded: dict[Any, Any] = {}

    def model(name: str, **options: Any) -> Any:
        key = (name, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = load_model(str(tiny_folder(name)), **options)
        return loaded[key]

    return model


@pytest.fixture(scope="session")
def storyworld() -> Any:
    """The built-in model."""
    from lensplorer.models import load_model

    return load_model("storyworld")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real browser, the only one of the run. Without one the tests that drive it are skipped, loudly; under CI=true that is a failure."""
    from tests.ui.conftest import FLAGS, find_browser

    path = find_browser()
    if path is None:
        missing("No Chromium was found (chromium, chromium-browser or google-chrome on the PATH, or LENSPLORER_BROWSER)", "the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests in a browser come last: the event loop of Playwright stays open, and ``asyncio.run`` refuses to work beside it."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Skipping is silent; this is not."""
    for what, skipped in SKIPPED.items():
        terminalreporter.section(f"{skipped.upper()} WERE SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{what}.", red=True)
