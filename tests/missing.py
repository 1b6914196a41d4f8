"""What a test needs and a machine may lack: without it the test is skipped, loudly; under CI=true it fails, unless no such machine has it."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: What was missing, and which tests were skipped for it; the end of the run says so.
SKIPPED: dict[str, str] = {}


def missing(what: str, skipped: str, *, in_ci: bool = True) -> NoReturn:
    """End the test, or the fixture, that cannot do without it; ``in_ci``: whether it is looked for under CI=true too."""
    if in_ci and os.environ.get("CI") == "true":
        pytest.fail(what)
    SKIPPED[what] = skipped
    pytest.skip(what)
