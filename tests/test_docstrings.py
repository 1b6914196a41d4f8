"""Every public name explains itself: what it takes and gives, its errors, and an example that doctest runs (``--doctest-modules``)."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest

import lensplorer as lp
from lensplorer.analyses.base import REGISTRY

FUNCTIONS = [name for name in lp.__all__ if inspect.isfunction(inspect.unwrap(getattr(lp, name)))]
ANALYSES = [name for name in FUNCTIONS if name in REGISTRY]
#: A lookup of what is already there: nothing can go wrong in it.
NEVER_RAISE = {"model_info"}


@pytest.mark.parametrize("name", lp.__all__)
def test_has_an_example_that_runs(name) -> None:
    text = inspect.getdoc(getattr(lp, name)) or ""
    examples = doctest.DocTestParser().get_examples(text)
    assert examples, f"{name} has no example"
    assert any(example.want for example in examples), f"{name}'s example shows nothing"
    assert "+SKIP" not in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_opens_with_a_sentence(name) -> None:
    first = (inspect.getdoc(getattr(lp, name)) or "").splitlines()[0]
    assert first and not first.startswith(">>>")


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in NEVER_RAISE])
def test_says_what_can_go_wrong(name) -> None:
    assert re.search(r"^Raises:\n +\S", inspect.getdoc(getattr(lp, name)) or "", re.M)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_says_its_shapes_errors_and_source(name) -> None:
    text = inspect.getdoc(getattr(lp, name)) or ""
    assert re.search(r"^Returns:\n(?:\s*.*\n)*?\s+.*\([a-z_]+(?:, [a-z_]+)*\)", text, re.M), "no dimensions in Returns"
    assert REGISTRY[name].source


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_named_in_the_docstring(name) -> None:
    function = inspect.unwrap(getattr(lp, name))
    text = inspect.getdoc(function) or ""
    if "Args:" not in text:
        return
    said = set(re.findall(r"\w+", text))
    missing = [each for each in inspect.signature(function).parameters if each not in said and each not in ("args", "kwargs")]
    assert not missing, f"{name} says nothing of {missing}"
