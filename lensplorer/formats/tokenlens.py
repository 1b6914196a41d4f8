"""TokenLens JSON: what each generated token owes to each token of the prompt.

``metadata``: timestamp (ISO-8601), llm_id, llm_version, prompt, attribution_method, generation_params, version. ``data``: input_tokens and
output_tokens, each {token, token_id, clean_token}; association_matrix [output][input], the scores; normalized_association, each row's
magnitudes over the largest of the row, 0 to 1.

The format has no place for what a generated token owes to those generated before it: that is left out in writing and unknown after reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lensplorer.arguments import expects
from lensplorer.errors import FormatError
from lensplorer.formats.attributions import Attributions
from lensplorer.formats.files import MAX_BYTES, damaged, read_json, write_bytes

VERSION = "1.0"
_WHAT = "a TokenLens file"


@expects
def write_tokenlens(path: str | Path, content: Attributions) -> None:
    """Write attributions as TokenLens JSON, whole or not at all.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> content = lp.attributions(trace, lp.attribution_matrix(trace, 3, method="occlusion"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.write_tokenlens(folder + "/a.json", content)
    ...     lp.read_tokenlens(folder + "/a.json").texts[-1]
    ' time'

    Raises:
        FormatError: the file cannot be written, or a score of a prompt token is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(to_tokenlens(content), ensure_ascii=False, allow_nan=False, indent=1)
    write_bytes(path, text.encode("utf-8", errors="surrogatepass"))


def to_tokenlens(content: Attributions) -> dict[str, Any]:
    """The TokenLens document, as plain data.

    Raises:
        FormatError: a score of a prompt token is not finite.
    """
    scores = content.scores[:, : content.start].astype(np.float64)  # [output, input]
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise FormatError(f"TokenLens JSON holds finite numbers: the score of output {row} and input {column} is {scores[row, column]}.")
    magnitude = np.abs(scores)
    largest = magnitude.max(axis=1, keepdims=True, initial=0)
    normalized = np.divide(magnitude, largest, out=np.zeros_like(magnitude), where=largest > 0)
    tokens = [
        {"token": piece, "token_id": token_id, "clean_token": text} for piece, token_id, text in zip(content.pieces, content.token_ids, content.texts)
    ]
    return {
        "metadata": {
            "timestamp": content.timestamp,
            "llm_id": content.model,
            "llm_version": content.version,
            "prompt": content.prompt,
            "attribution_method": content.method,
            "generation_params": dict(content.generation),
            "version": VERSION,
        },
        "data": {
            "input_tokens": tokens[: content.start],
            "output_tokens": tokens[content.start :],
            "association_matrix": scores.tolist(),
            "normalized_association": normalized.tolist(),
        },
    }


@expects
def read_tokenlens(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Attributions:
    """Read TokenLens JSON.

    >>> import tempfile
    >>> import numpy as np
    >>> import lensplorer as lp
    >>> content = lp.Attributions(("a", "b"), (0, 1), 1, np.array([[0.5, 0.0]]), model="m", method="occlusion")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.write_tokenlens(folder + "/a.json", content)
    ...     lp.read_tokenlens(folder + "/a.json").token_ids
    (0, 1)

    Raises:
        FormatError: the file cannot be read, is larger than ``max_bytes``, or is not TokenLens JSON; the message says where.
    """
    return from_tokenlens(read_json(path, what=_WHAT, max_bytes=max_bytes), name=path)


def from_tokenlens(document: Mapping[str, Any], *, name: str | Path = "document") -> Attributions:
    """The attributions in a TokenLens document; fields of ``metadata`` may be missing, those of ``data`` may not, but for the normalised matrix.

    Raises:
        FormatError: as ``read_tokenlens``.
    """
    wrong = damaged(name, _WHAT)
    metadata, data = document.get("metadata"), document.get("data")
    if not isinstance(metadata, Mapping) or not isinstance(data, Mapping):
        raise wrong("expected the objects 'metadata' and 'data'.")
    inputs, outputs = _tokens(data, "input_tokens", wrong), _tokens(data, "output_tokens", wrong)
    scores = _matrix(data.get("association_matrix"), len(outputs), len(inputs), wrong)
    generation = metadata.get("generation_params") or {}
    if not isinstance(generation, Mapping):
        raise wrong(f"metadata.generation_params is {type(generation).__name__}: expected an object.")
    tokens, n = [*inputs, *outputs], len(inputs) + len(outputs)
    whole = np.full((len(outputs), n), np.nan, dtype=np.float32)
    whole[:, : len(inputs)] = scores
    known = {key: str(metadata.get(key) or "") for key in ("llm_id", "llm_version", "prompt", "attribution_method", "timestamp")}
    return Attributions(
        pieces=tuple(piece for piece, _, _ in tokens),
        token_ids=tuple(token_id for _, token_id, _ in tokens),
        start=len(inputs),
        scores=whole,
        texts=tuple(text for _, _, text in tokens),
        model=known["llm_id"],
        version=known["llm_version"],
        prompt=known["prompt"],
        method=known["attribution_method"],
        timestamp=known["timestamp"],
        generation=generation,
    )


def _tokens(data: Mapping[str, Any], key: str, wrong: Any) -> list[tuple[str, int, str]]:
    tokens = data.get(key)
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        raise wrong(f"data.{key} is missing or no list.")
    found = []
    for index, token in enumerate(tokens):
        if not isinstance(token, Mapping) or not isinstance(token.get("token"), str):
            raise wrong(f"data.{key}[{index}] is {str(token)[:80]!r}: expected an object with token, token_id and clean_token.")
        token_id, text = token.get("token_id", -1), token.get("clean_token", token["token"])
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not isinstance(text, str):
            raise wrong(f"data.{key}[{index}] is {str(dict(token))[:80]}: expected an integer token_id and a text clean_token.")
        found.append((token["token"], token_id, text))
    return found


def _matrix(rows: Any, n_rows: int, n_columns: int, wrong: Any) -> np.ndarray:
    expected = f"expected {n_rows} rows (output tokens) of {n_columns} numbers (input tokens)"
    if not isinstance(rows, list) or len(rows) != n_rows or not all(isinstance(row, list) and len(row) == n_columns for row in rows):
        raise wrong(f"data.association_matrix does not fit the tokens: {expected}.")
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for row in rows for value in row):
        raise wrong(f"data.association_matrix holds something that is no number: {expected}.")
    try:
        matrix = np.array(rows, dtype=np.float64).reshape(n_rows, n_columns)
    except OverflowError as error:
        raise wrong("data.association_matrix holds a number too large for a float.") from error
    if not np.isfinite(matrix).all() or np.abs(matrix).max(initial=0) > np.finfo(np.float32).max:
        raise wrong("data.association_matrix holds NaN, Infinity, or a number too large for float32.")
    return matrix.astype(np.float32)
