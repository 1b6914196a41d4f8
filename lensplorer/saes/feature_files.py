"""What other programs wrote about features: the feature JSON of Neuronpedia and of circuit-tracer, and Neuronpedia's exports.

Held against Neuronpedia at ebb8426 (2026-08-20) and circuit-tracer 0.5.0. Four kinds of record, told apart by their fields:

- Neuronpedia's feature, as its API gives it or as a line of ``features/batch-*.jsonl.gz``: index (a text), modelId, layer, pos_str (the tokens whose
  logits it raises most), frac_nonzero (share of tokens on which it fires, negative where unknown); from the API ``activations`` and ``explanations``
  too, the best first.
- a line of ``activations/``: tokens, values; a line of ``explanations/``: description.
- circuit-tracer's feature, which Neuronpedia's graphs take too: index, examples_quantiles [{examples [{tokens, tokens_acts_list}]}], and perhaps
  top_logits, activation_frequency, transcoder_id. It has no name of the feature.

A token is the text it adds or the tokenizer's piece, with a drawn space; circuit-tracer writes bytes that are no character as ``\\xe2``.
"""

from __future__ import annotations

import gzip
import heapq
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensplorer.errors import FormatError
from lensplorer.formats.attributions import text_of_piece
from lensplorer.formats.files import MAX_BYTES, damaged

_WHAT = "a file of features that Neuronpedia or circuit-tracer wrote"
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_EXPORT = ("features", "explanations", "activations")
_EXAMPLES = 8  # kept of each feature, the strongest
_AROUND = 10  # tokens shown on each side of the active one

Wrong = Callable[[str], FormatError]


@dataclass
class FeatureNotes:
    """What the files say about one feature.

    Attributes:
        label: its explanation; empty where there is none.
        promotes: tokens whose logits it raises most, best first.
        examples: (text with the active token in «», activation), at most 8, strongest first.
        density: share of tokens on which it fires.
    """

    label: str = ""
    promotes: tuple[str, ...] = ()
    examples: list[tuple[str, float]] = field(default_factory=list)
    density: float | None = None


@dataclass
class FeatureNotesFile:
    """The notes in a file or folder: by index in d_sae, and which SAE they say they are of ("gpt2-small/8-res-jb"), if they do."""

    source: str | None
    features: dict[int, FeatureNotes]


def read_feature_notes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> FeatureNotesFile:
    """Read what is known of features: one file (.json, .jsonl, each perhaps .gz), or all of a folder, of one SAE.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "3.json").write_text(json.dumps({
    ...         "index": 3, "top_logits": [" sea"],
    ...         "examples_quantiles": [{"quantile_name": "top", "examples": [{"tokens": ["to", " the"], "tokens_acts_list": [0, 2.5]}]}],
    ...     }))
    ...     read_feature_notes(folder).features
    {3: FeatureNotes(label='', promotes=(' sea',), examples=[('to« the»', 2.5)], density=None)}

    Of a Neuronpedia export's folder the subfolders features, explanations and activations are read; of another folder every file of these endings.

    Raises:
        FormatError: nothing to read; all files together are larger than ``max_bytes``, unpacked; a file is damaged or of another kind; they are of
            several SAEs. The message names file and field.
    """
    path = Path(path)
    reader = _Reader(max_bytes)
    for file in _files(path):
        reader.read(file)
    if not reader.features:
        raise FormatError(f"{str(path)!r} holds no feature: expected files that end in {', '.join(_ENDINGS)}.")
    for notes in reader.features.values():
        notes.examples.sort(key=lambda example: -example[1])
    return FeatureNotesFile(reader.source, reader.features)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    folders = [path / name for name in _EXPORT if (path / name).is_dir()] or [path]
    return sorted(file for folder in folders for file in folder.iterdir() if file.name.endswith(_ENDINGS))


class _Reader:
    """Gathers what the records say, by feature."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.left = max_bytes, max_bytes
        self.source: str | None = None
        self.features: dict[int, FeatureNotes] = {}

    def read(self, file: Path) -> None:
        for where, record in self._records(file):
            wrong = damaged(where, _WHAT)
            if not isinstance(record, Mapping):
                raise wrong(f"expected an object, got {type(record).__name__}.")
            notes = self._notes(record, wrong)
            if "examples_quantiles" in record:
                _add_circuit_tracer(notes, record, wrong)
            elif "description" in record:
                _add_explanations(notes, [record], wrong)
            elif "tokens" in record and "values" in record:
                _add_activations(notes, [record], "tokens", "values", wrong)
            elif "pos_str" in record or "explanations" in record or "activations" in record:
                _add_neuronpedia(notes, record, wrong)
            else:
                raise wrong("expected pos_str, explanations, activations, description, tokens and values, or examples_quantiles beside the index.")

    def _notes(self, record: Mapping[str, Any], wrong: Wrong) -> FeatureNotes:
        index = record.get("index")
        if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 20:
            index = int(index)
        if type(index) is not int or index < 0:
            raise wrong(f"index is {str(index)[:80]!r}: expected a feature's number.")
        said = f"{record['modelId']}/{record['layer']}" if "modelId" in record and "layer" in record else record.get("transcoder_id")
        if said is not None:
            if self.source is not None and said != self.source:
                raise wrong(f"it is of {said!r}, and a file before it of {self.source!r}: give the files of one SAE.")
            self.source = str(said)
        return self.features.setdefault(index, FeatureNotes())

    def _records(self, file: Path) -> Iterator[tuple[str, Any]]:
        lines = ".jsonl" in file.suffixes
        try:
            if not lines:
                content = json.loads(b"".join(self._lines(file)))
                yield from ((str(file), record) for record in (content if isinstance(content, list) else [content]))
                return
            for number, line in enumerate(self._lines(file), start=1):
                if line.strip():
                    yield f"{file}, line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{str(file)!r} is not {_WHAT}: it is no valid JSON ({error}).") from error

    def _lines(self, file: Path) -> Iterator[bytes]:
        """The lines of a file, unpacked, as long as all files together are within the bound."""
        try:
            with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as opened:
                while line := opened.readline(self.left + 1):
                    self.left -= len(line)
                    if self.left < 0:
                        raise FormatError(
                            f"{str(file)!r}, and what was read before it, are larger than {self.max_bytes / 2**20:.0f} MiB, the most that is read:"
                            " give fewer files; those of activations are the largest."
                        )
                    yield line
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(f"{str(file)!r} cannot be read: {error}.") from error


def _add_neuronpedia(notes: FeatureNotes, record: Mapping[str, Any], wrong: Wrong) -> None:
    notes.promotes = _tokens(record, "pos_str", wrong) or notes.promotes
    notes.density = _share(record, "frac_nonzero", wrong)
    _add_explanations(notes, _objects(record, "explanations", wrong), wrong)
    _add_activations(notes, _objects(record, "activations", wrong), "tokens", "values", wrong)


def _add_circuit_tracer(notes: FeatureNotes, record: Mapping[str, Any], wrong: Wrong) -> None:
    notes.promotes = _tokens(record, "top_logits", wrong) or notes.promotes
    notes.density = _share(record, "activation_frequency", wrong)
    for quantile in _objects(record, "examples_quantiles", wrong):
        _add_activations(notes, _objects(quantile, "examples", wrong), "tokens", "tokens_acts_list", wrong)


def _add_explanations(notes: FeatureNotes, explanations: list[Mapping[str, Any]], wrong: Wrong) -> None:
    for explanation in explanations:
        if not isinstance(explanation.get("description"), str):
            raise wrong("the description of an explanation is missing or no text.")
        notes.label = notes.label or explanation["description"].strip()


def _add_activations(notes: FeatureNotes, examples: list[Mapping[str, Any]], tokens_key: str, values_key: str, wrong: Wrong) -> None:
    for example in examples:
        tokens, values = _texts(example, tokens_key, wrong), example.get(values_key)
        if not isinstance(values, list) or len(values) != len(tokens) or not all(_is_number(value) for value in values):
            raise wrong(f"{values_key} does not fit {tokens_key}: expected {len(tokens)} numbers.")
        if not tokens or (strongest := max(values)) <= 0:
            continue
        found = (_shown(tokens, values.index(strongest)), float(strongest))
        if found not in notes.examples:
            notes.examples = heapq.nlargest(_EXAMPLES, [*notes.examples, found], key=lambda item: item[1])


def _shown(tokens: tuple[str, ...], active: int) -> str:
    """The text about the active token, which stands in «»."""
    before, after = tokens[max(0, active - _AROUND) : active], tokens[active + 1 : active + 1 + _AROUND]
    return f"{_joined(before)}«{_joined(tokens[active : active + 1])}»{_joined(after)}"


def _joined(tokens: tuple[str, ...]) -> str:
    """Tokens as text; bytes written as \\x.. become the characters they make together.

    >>> _joined(("ĠGood", "\\\\xe2\\\\x82", "\\\\xac"))
    ' Good€'
    """

    def characters(match: re.Match[str]) -> str:
        return bytes.fromhex(match.group().replace("\\x", "")).decode("utf-8", errors="replace")

    return re.sub(r"(?:\\x[0-9a-f]{2})+", characters, "".join(map(text_of_piece, tokens)))


def _texts(record: Mapping[str, Any], key: str, wrong: Wrong) -> tuple[str, ...]:
    texts = record.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise wrong(f"{key} is no list of texts.")
    return tuple(texts)


def _tokens(record: Mapping[str, Any], key: str, wrong: Wrong) -> tuple[str, ...]:
    return tuple(_joined((token,)) for token in _texts(record, key, wrong))


def _objects(record: Mapping[str, Any], key: str, wrong: Wrong) -> list[Mapping[str, Any]]:
    objects = record.get(key) or []
    if not isinstance(objects, list) or not all(isinstance(item, Mapping) for item in objects):
        raise wrong(f"{key} is no list of objects.")
    return objects


def _share(record: Mapping[str, Any], key: str, wrong: Wrong) -> float | None:
    share = record.get(key)
    if share is None:
        return None
    if not _is_number(share) or share > 1:
        raise wrong(f"{key} is {str(share)[:80]}: expected a share of tokens, 0 to 1.")
    return float(share) if share >= 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
