"""What a test needs and a machine may lack: without it the test is skipped, loudly; under CI=true it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: What was missing, and which tests were skipped for it; the end of the run says so.
SKIPPED: dict[str, str] = {}


def missing(what: str, skipped: str) -> NoReturn:
    """End the test, or the fixture, that cannot do without it."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    SKIPPED[what] = skipped
    pytest.skip(what)
