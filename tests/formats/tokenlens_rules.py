"""What TokenLens' two programs accept, stated apart from our reader and writer: as tables of fields, types, versions and shapes.

Held against KaiserRuben/TokenLense at fe341e8 (2025-04-04): the page's ``ui/src/utils/data.ts`` (its validator) and ``types.ts``, the Python
side's ``src/persistence/schema.py`` (pydantic) and ``storage.py``. Nothing of them is repeated here but facts.
"""

from __future__ import annotations

import jsonschema

VERSIONS = ["1.0.0", "1.0.1", "1.1.0"]
SOURCES = ["source", "target", "combined", "unknown"]

#: field → JSON type. Both programs want these.
TOKEN = {"token": "string", "token_id": "integer", "clean_token": "string"}
METADATA = {"timestamp": "string", "llm_id": "string", "llm_version": "string", "prompt": "string", "version": "string"}
MATRIX = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
#: columns of a row, of the number of inputs and outputs: what the page takes, and all that a file may have.
PAGE_WIDTH = "inputs + outputs"
WIDTHS = {"inputs": (1, 0, 0), "inputs + outputs - 1": (1, 1, -1), PAGE_WIDTH: (1, 1, 0)}


def _object(required: dict, optional: dict | None = None) -> dict:
    def typed(kind):
        return {"type": kind} if isinstance(kind, str) else kind

    fields = {name: typed(kind) for name, kind in {**required, **(optional or {})}.items()}
    return {"type": "object", "properties": fields, "required": list(required)}


def _document(metadata: dict, data: dict) -> dict:
    return _object({"metadata": metadata, "data": data})


_TOKENS = {"type": "array", "items": _object(TOKEN)}
_DATA = {"input_tokens": _TOKENS, "output_tokens": _TOKENS, "association_matrix": MATRIX}

#: The page: every field of metadata, and max_new_tokens a number. It draws normalized_association, so that has to be there too.
PAGE = _document(
    _object({**METADATA, "generation_params": _object({"max_new_tokens": "number"})}),
    _object({**_DATA, "normalized_association": MATRIX}),
)
#: The Python side: a version that it knows, parameters that are texts or numbers, an ISO-8601 time; the normalised matrix is optional.
PYTHON = _document(
    _object(
        {"llm_id": "string", "llm_version": "string", "prompt": "string"},
        {
            "timestamp": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?$"},
            "version": {"enum": VERSIONS},
            "attribution_method": {"type": ["string", "null"]},
            "generation_params": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        },
    ),
    _object(
        _DATA,
        {
            "normalized_association": {"anyOf": [MATRIX, {"type": "null"}]},
            "attribution_source": {"enum": SOURCES},
            "raw_dimensions": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
        },
    ),
)


def width(rule: str, n_inputs: int, n_outputs: int) -> int:
    of_inputs, of_outputs, more = WIDTHS[rule]
    return of_inputs * n_inputs + of_outputs * n_outputs + more


def assert_accepted(document: dict) -> None:
    """The page shows it, and the Python side loads it."""
    jsonschema.validate(document, PAGE)
    jsonschema.validate(document, PYTHON)
    data = document["data"]
    n_inputs, n_outputs = len(data["input_tokens"]), len(data["output_tokens"])
    for name in ("association_matrix", "normalized_association"):
        assert [len(row) for row in data[name]] == [width(PAGE_WIDTH, n_inputs, n_outputs)] * n_outputs, name
        for output, row in enumerate(data[name]):
            assert not any(row[n_inputs + output :]), f"{name}: output {output} rests on itself or on what comes later"
    assert all(0 <= share <= 1 for row in data["normalized_association"] for share in row)
