"""Whatever the OpenAPI document lets a client send, and much that it does not, is answered, and never with a server error.

``LENSPLORER_FUZZ_CASES`` sets the number of cases.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("LENSPLORER_FUZZ_CASES", "150"))
_SLOW = ("/api/analyses/head_clusters",)  # UMAP: seconds for each


@pytest.fixture(scope="module")
def schema(serving):
    client = serving(max_tokens=64, allowed_models=("storyworld",))
    return schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"Host": "127.0.0.1"})


def test_no_case_is_a_server_error(schema):
    operations = [found.ok() for found in schema.get_all_operations()]
    strategies = {
        (op.label, mode.name): op.as_strategy(generation_mode=mode)
        for op in operations
        for mode in schemathesis.GenerationMode
        if op.path not in _SLOW and (mode is schemathesis.GenerationMode.POSITIVE or op.body)
    }
    assert len(strategies) > 60
    seen: dict[int, int] = {}

    @seed(0)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        case = data.draw(st.sampled_from(sorted(strategies)).flatmap(strategies.__getitem__))
        response = case.call(headers={"Host": "127.0.0.1"})
        seen[response.status_code] = seen.get(response.status_code, 0) + 1
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"
        if response.status_code >= 400:
            assert set(response.json()) == {"detail"}

    check()
    assert seen.get(200, 0) > CASES // 20 and sum(seen.values()) >= CASES * 0.9, seen
    if os.environ.get("LENSPLORER_FUZZ_CASES"):
        print(seen)
