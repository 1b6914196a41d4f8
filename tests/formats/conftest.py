"""One explained generation, shared."""

from __future__ import annotations

from typing import Any

import pytest

import lensplorer as lp


@pytest.fixture(scope="session")
def explained(storyworld: Any) -> tuple[Any, Any, Any]:
    """(trace, attribution matrix, attributions) of a short text whose last tokens count as generated."""
    trace = lp.run_trace(storyworld, "Once upon a time there was a boy")
    matrix = lp.attribution_matrix(trace, 5, method="occlusion")
    return trace, matrix, lp.attributions(trace, matrix, generation={"max_new_tokens": 4, "temperature": 0.0})
