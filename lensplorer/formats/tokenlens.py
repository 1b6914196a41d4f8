"""TokenLens JSON, as TokenLens' own programs write and read it: what each generated token owes to each token before it.

``metadata``: timestamp (ISO-8601), llm_id, llm_version, prompt, attribution_method, generation_params, version. ``data``: input_tokens and
output_tokens, each {token, token_id, clean_token}; association_matrix [output][input, then output]; normalized_association, of the same shape.

Facts of the format, held against KaiserRuben/TokenLense at fe341e8 (2025-04-04), its last state with ``src/`` and ``ui/``:

- A row has a number for each input and each output; the output itself and those after it are 0. Older files hold the inputs alone, and one
  program leaves the last output out, on which nothing can rest.
- Its page wants every row whole, a text ``version`` and a number ``generation_params.max_new_tokens``; its Python schema a version that it knows
  and parameters that are texts or numbers.
- Its Inseq analyser stores Inseq's matrix as it is, [token][generated], with zeros to the right, and tells by ``raw_dimensions``. Its outputs
  then begin with the inputs.
- The page's data step packs sparse matrices: {values, indices, shape}, an index being row · 65,536 + column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lensplorer.arguments import expects
from lensplorer.errors import FormatError
from lensplorer.formats.attributions import Attributions, text_of_piece
from lensplorer.formats.files import MAX_BYTES, damaged, read_json, write_bytes

#: What is written.
VERSION = "1.1.0"
#: What is read: the versions of TokenLens, and that of the first files of lensplorer. A file may also have none.
VERSIONS = ("1.0.0", "1.0.1", VERSION, "1.0")

#: The most scores that are read, outputs × tokens: 256 MiB.
MAX_SCORES = 2**26

_WHAT = "a TokenLens file"
_BLANKS = " \n\t"  # what a clean token leaves out and its piece still tells
_SOURCES = ("source", "target", "combined", "unknown")

Wrong = Callable[[str], FormatError]


class _Token(NamedTuple):
    piece: str
    token_id: int
    text: str


# -- writing ---------------------------------------------------------------------------------------------------------------------------


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
        FormatError: the file cannot be written, or the content cannot be said in this format (see ``to_tokenlens``).
    """
    text = json.dumps(to_tokenlens(content), ensure_ascii=False, allow_nan=False, indent=1)
    write_bytes(path, text.encode("utf-8", errors="surrogatepass"))


def to_tokenlens(content: Attributions) -> dict[str, Any]:
    """The TokenLens document, as plain data, of version 1.1.0.

    What the content does not say and the format needs is filled in: the time, now; ``max_new_tokens``, the number of outputs. Where nothing is
    known of what outputs owe to outputs, these are zeros and ``attribution_source`` is "source", else "combined".

    Raises:
        FormatError: a score is NaN or infinite, which JSON cannot hold; the timestamp is not ISO-8601.
    """
    n_in, n = content.start, len(content.pieces)
    scores, source = _finite(content.scores.astype(np.float64), n_in)  # [output, token]
    magnitude = np.abs(scores)
    largest = magnitude.max(axis=1, keepdims=True, initial=0)
    normalized = np.divide(magnitude, largest, out=np.zeros_like(magnitude), where=largest > 0)
    tokens = [
        {"token": piece, "token_id": token_id, "clean_token": text.strip(_BLANKS) or piece}
        for piece, token_id, text in zip(content.pieces, content.token_ids, content.texts)
    ]
    return {
        "metadata": {
            "timestamp": _timestamp(content.timestamp),
            "llm_id": content.model,
            "llm_version": content.version,
            "prompt": content.prompt,
            "attribution_method": content.method,
            "generation_params": _parameters(content.generation, n - n_in),
            "version": VERSION,
        },
        "data": {
            "input_tokens": tokens[:n_in],
            "output_tokens": tokens[n_in:],
            "association_matrix": scores.tolist(),
            "normalized_association": normalized.tolist(),
            "attribution_source": source,
        },
    }


def _finite(scores: np.ndarray, n_in: int) -> tuple[np.ndarray, str]:
    """The scores with 0 for what cannot speak for an output, and for the outputs' part where all of it is unknown; and what they cover."""
    possible = _possible(scores, n_in)
    scores = np.where(possible, scores, 0)
    earlier = scores[:, n_in:][possible[:, n_in:]]
    source = "combined"
    if earlier.size and np.isnan(earlier).all():
        scores[:, n_in:], source = 0, "source"
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise FormatError(f"TokenLens JSON holds finite numbers: the score of output {row} and token {column} is {scores[row, column]}.")
    return scores, source


def _possible(scores: np.ndarray, n_in: int) -> np.ndarray:
    """Which token comes before which output. [output, token]"""
    outputs, tokens = np.indices(scores.shape)
    return np.asarray(tokens < n_in + outputs)


def _timestamp(text: str) -> str:
    if not text:
        return datetime.now(UTC).isoformat(timespec="seconds")
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError(f"The timestamp {text!r} is not ISO-8601, e.g. 2025-01-31T12:00:00+00:00.") from error
    return text


def _parameters(generation: Mapping[str, Any], n_outputs: int) -> dict[str, str | int | float]:
    """The parameters as the format has them, texts and numbers: an unset one (None) is left out, and any other value is written as JSON text."""
    found: dict[str, str | int | float] = {}
    for key, value in generation.items():
        plain = isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
        if value is not None:
            found[str(key)] = value if plain else json.dumps(value, default=str)
    given = found.get("max_new_tokens")
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        found["max_new_tokens"] = n_outputs
    return found


# -- reading ---------------------------------------------------------------------------------------------------------------------------


@expects
def read_tokenlens(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Attributions:
    """Read TokenLens JSON of versions 1.0.0, 1.0.1 and 1.1.0, and the plain form of its README, which has none.

    >>> import tempfile
    >>> import numpy as np
    >>> import lensplorer as lp
    >>> content = lp.Attributions(("a", "b"), (0, 1), 1, np.array([[0.5, 0.0]]), model="m", method="occlusion")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.write_tokenlens(folder + "/a.json", content)
    ...     lp.read_tokenlens(folder + "/a.json").token_ids
    (0, 1)

    The scores are those of ``association_matrix``. ``normalized_association`` may be missing and is not read: each program normalises in its own way.
    Where a file has no outputs' columns, or nothing but padding in them, what outputs owe to outputs is NaN.

    Raises:
        FormatError: the file cannot be read, is larger than ``max_bytes``, or is not TokenLens JSON; the message names the field.
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
    version, generation = metadata.get("version"), metadata.get("generation_params") or {}
    if version is not None and version not in VERSIONS:
        raise wrong(f"metadata.version is {str(version)[:80]!r}: expected one of {', '.join(VERSIONS)}, or none.")
    if not isinstance(generation, Mapping):
        raise wrong(f"metadata.generation_params is {type(generation).__name__}: expected an object.")
    known = {key: str(metadata.get(key) or "") for key in ("llm_id", "llm_version", "prompt", "attribution_method", "timestamp")}
    inputs, outputs = _tokens(data, "input_tokens", wrong), _tokens(data, "output_tokens", wrong)
    if len(outputs) * (len(inputs) + len(outputs)) > MAX_SCORES:
        raise wrong(f"data has {len(inputs)} input_tokens and {len(outputs)} output_tokens: more scores than are read, {MAX_SCORES}.")
    if data.get("raw_dimensions") is None:
        start, tokens, scores = len(inputs), [*inputs, *outputs], _rows_of_outputs(data, len(inputs), len(outputs), wrong)
    else:
        start, tokens, scores = _columns_of_generated(data, inputs, outputs, wrong)
    return Attributions(
        pieces=tuple(token.piece for token in tokens),
        token_ids=tuple(token.token_id for token in tokens),
        start=start,
        scores=scores,
        texts=tuple(token.text for token in tokens),
        model=known["llm_id"],
        version=known["llm_version"],
        prompt=known["prompt"],
        method=known["attribution_method"],
        timestamp=known["timestamp"],
        generation=generation,
    )


def _rows_of_outputs(data: Mapping[str, Any], n_in: int, n_out: int, wrong: Wrong) -> np.ndarray:
    """The scores where a row is an output. NaN is what the file does not say. [output, token]"""
    source = data.get("attribution_source") or "unknown"
    if source not in _SOURCES:
        raise wrong(f"data.attribution_source is {str(source)[:80]!r}: expected one of {', '.join(_SOURCES)}.")
    if source == "target":
        raise wrong("data.attribution_source is 'target' and data.raw_dimensions are missing: nothing says which column is which token.")
    matrix = _matrix(data, n_out, [n_in, n_in + n_out - 1, n_in + n_out], wrong)
    _check_finite(matrix, wrong)
    whole = np.full((n_out, n_in + n_out), np.nan, dtype=np.float32)
    whole[:, : matrix.shape[1]] = matrix
    possible = _possible(whole, n_in)
    later = np.argwhere(~possible & (np.nan_to_num(whole) != 0))
    if len(later):
        row, column = later[0]
        raise wrong(
            f"data.association_matrix[{row}][{column}] is {whole[row, column]:g}: output {row} rests on the {n_in} inputs and the outputs before it;"
            " expected 0 for itself and what comes later."
        )
    if matrix.shape[1] > n_in:
        earlier = possible & (np.arange(n_in + n_out) >= n_in)
        padded = not whole[earlier].any()
        if source == "source" and not padded:
            raise wrong("data.attribution_source is 'source', and data.association_matrix has numbers in its outputs' columns: expected zeros.")
        if source != "combined" and padded:
            whole[earlier] = np.nan
    return whole


def _columns_of_generated(data: Mapping[str, Any], inputs: list[_Token], outputs: list[_Token], wrong: Wrong) -> tuple[int, list[_Token], np.ndarray]:
    """(first generated, tokens, scores [generated, token]) of a file of the Inseq analyser, which says the matrix's size before padding."""
    n_in, n_out, raw = len(inputs), len(outputs), data["raw_dimensions"]
    n = n_in + n_out
    if not isinstance(raw, list) or len(raw) != 2 or not all(type(size) is int and 0 <= size <= n for size in raw):
        raise wrong(f"data.raw_dimensions is {str(raw)[:80]}: expected two numbers of tokens, the size of the matrix before padding.")
    n_rows, n_columns = raw
    matrix = _matrix(data, max(n_rows, n_out), [n_columns, max(n_columns, n - 1)], wrong)
    if matrix[n_rows:].any() or matrix[:, n_columns:].any():
        raise wrong(f"data.association_matrix has numbers outside of data.raw_dimensions, {n_rows} rows and {n_columns} columns: expected zeros.")
    matrix = matrix[:n_rows, :n_columns]
    whole_text = [token.piece for token in outputs[:n_in]] == [token.piece for token in inputs]
    if whole_text and raw == [n_out, n_out - n_in]:  # a decoder: the outputs are prompt and generation, and the matrix is [token][generated]
        scores = matrix.T
        _check_finite(scores[_possible(scores, n_in)], wrong)
        return n_in, outputs, scores.astype(np.float32)
    turned, plain = raw == [n_out, n_in], n_rows == n_in and n_columns <= n_out  # attention is turned: [generated][input]
    if whole_text or turned == plain:
        raise wrong(
            f"data.raw_dimensions {raw} do not say what the matrix is: expected for a decoder {[n_out, n_out - n_in]}, and outputs that begin with"
            f" the inputs; for an encoder {[n_in, n_out]}, or fewer outputs, or {[n_out, n_in]}."
        )
    scores = matrix if turned else matrix.T  # [generated, input]
    _check_finite(scores, wrong)
    whole = np.full((len(scores), n), np.nan, dtype=np.float32)
    whole[:, :n_in] = scores
    return n - len(scores), [*inputs, *outputs], whole


def _tokens(data: Mapping[str, Any], key: str, wrong: Wrong) -> list[_Token]:
    tokens = data.get(key)
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        raise wrong(f"data.{key} is missing or no list.")
    found = []
    for index, token in enumerate(tokens):
        if not isinstance(token, Mapping) or not isinstance(token.get("token"), str):
            raise wrong(f"data.{key}[{index}] is {str(token)[:80]!r}: expected an object with token, token_id and clean_token.")
        piece = token["token"]
        token_id, clean = token.get("token_id", -1), token.get("clean_token", piece)
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not isinstance(clean, str):
            raise wrong(f"data.{key}[{index}] is {str(dict(token))[:80]}: expected an integer token_id and a text clean_token.")
        found.append(_Token(piece, token_id, _text(piece, clean)))
    return found


def _text(piece: str, clean: str) -> str:
    """What a token adds to the text: its clean form, between the blanks that only its piece tells.

    >>> _text("Ġtime", "time"), _text("ĠÃ©t", "ét"), _text("Ċ", "Ċ"), _text("Ġtime", " time")
    (' time', ' ét', '\\n', ' time')
    """
    drawn = text_of_piece(piece)
    if clean == piece:
        return drawn
    if clean != clean.strip(_BLANKS):
        return clean
    before = drawn[: len(drawn) - len(drawn.lstrip(_BLANKS))]
    after = drawn[len(drawn.rstrip(_BLANKS)) :] if drawn.strip(_BLANKS) else ""
    return before + clean + after


def _matrix(data: Mapping[str, Any], n_rows: int, n_columns: list[int], wrong: Wrong) -> np.ndarray:
    """``association_matrix``, of one of these widths, packed or not. float64 [row, column]"""
    rows = data.get("association_matrix")
    columns = sorted(set(n_columns))
    expected = f"expected {n_rows} rows of {' or '.join(map(str, columns))} numbers"
    if isinstance(rows, Mapping):
        return _unpacked(rows, n_rows, columns, expected, wrong)
    if not isinstance(rows, list) or len(rows) != n_rows or not all(isinstance(row, list) for row in rows):
        raise wrong(f"data.association_matrix does not fit the tokens: {expected}.")
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1 or not set(widths) <= set(columns):
        raise wrong(f"data.association_matrix does not fit the tokens: {expected}, got rows of {' and '.join(map(str, widths[:4]))}.")
    return _numbers([value for row in rows for value in row], wrong).reshape(n_rows, widths[0] if widths else columns[-1])


def _unpacked(packed: Mapping[str, Any], n_rows: int, n_columns: list[int], expected: str, wrong: Wrong) -> np.ndarray:
    values, indices, shape = (packed.get(key) for key in ("values", "indices", "shape"))
    if not isinstance(shape, list) or len(shape) != 2 or shape[0] != n_rows or shape[1] not in n_columns:
        raise wrong(f"data.association_matrix.shape is {str(shape)[:80]}: {expected}.")
    if not isinstance(values, list) or not isinstance(indices, list) or len(values) != len(indices):
        raise wrong("data.association_matrix: expected as many indices as values.")
    matrix = np.zeros((shape[0], shape[1]))
    for index, value in zip(indices, _numbers(values, wrong)):
        row, column = divmod(index, 2**16) if type(index) is int else (-1, -1)
        if not (0 <= row < shape[0] and column < shape[1]):
            raise wrong(f"data.association_matrix.indices holds {str(index)[:80]}, which is outside its shape {shape}.")
        matrix[row, column] = value
    return matrix


def _numbers(values: list[Any], wrong: Wrong) -> np.ndarray:
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise wrong("data.association_matrix holds something that is no number.")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise wrong("data.association_matrix holds a number too large for a float.") from error


def _check_finite(values: np.ndarray, wrong: Wrong) -> None:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
        raise wrong("data.association_matrix holds NaN, Infinity, or a number too large for float32.")
