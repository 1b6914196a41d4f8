"""Inseq's JSON, both ways, without Inseq: the files of ``FeatureAttributionOutput.save`` and ``load`` (Inseq 0.7).

Inseq cannot be installed beside TransformerLens: they need different versions of typeguard. Its file is a tree of {"__instance_type__":
[module, class], "attributes": {…}}; each array is a safetensors file with one tensor, "attribution", in base64. Scores are [source, generated]
with NaN where a token cannot speak for a generated one, and may have more dimensions, which are merged here as Inseq merges them by default,
without its normalising: the L2 norm over the embedding of gradient methods, the mean over layers and heads of attention.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lensplorer.arguments import expects
from lensplorer.errors import FormatError
from lensplorer.formats.attributions import Attributions
from lensplorer.formats.files import MAX_BYTES, damaged, read_json, write_bytes

_WHAT = "an Inseq attribution file"
_MODULE = "inseq.data.attribution"
_TENSOR = "attribution"

Wrong = Callable[[str], FormatError]


# -- writing ---------------------------------------------------------------------------------------------------------------------------


@expects
def write_inseq(path: str | Path, content: Attributions | Sequence[Attributions]) -> None:
    """Write attributions as a file that Inseq opens: ``FeatureAttributionOutput.load(path)``. Packed if the name ends in ``.gz``.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> content = lp.attributions(trace, lp.attribution_matrix(trace, 3, method="occlusion"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.write_inseq(folder + "/a.json", content)
    ...     lp.read_inseq(folder + "/a.json")
    [Attributions('occlusion' of 'storyworld', 3 + 2 tokens)]

    Args:
        path: the file.
        content: one sequence or several, of one model and method.

    Raises:
        FormatError: the file cannot be written; there is no sequence; they are of different models or methods.
    """
    data = json.dumps(to_inseq(content), indent=4, sort_keys=True).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def to_inseq(content: Attributions | Sequence[Attributions]) -> dict[str, Any]:
    """The document of ``write_inseq``, as plain data."""
    sequences = [content] if isinstance(content, Attributions) else list(content)
    if not sequences:
        raise FormatError("An Inseq file holds at least one sequence: there is none to write.")
    first = sequences[0]
    for other in sequences[1:]:
        if (other.model, other.method) != (first.model, first.method):
            raise FormatError(
                f"One Inseq file is of one model and method: {first.method!r} of {first.model!r} and {other.method!r} of {other.model!r}."
            )
    info = {
        "attr_pos_start": first.start,
        "attr_pos_end": max(len(sequence.pieces) for sequence in sequences),
        "attribute_target": False,
        "attributed_fn": "logit",
        "attributed_fn_args": {},
        "attribution_args": {},
        "attribution_method": first.method,
        "constrained_decoding": True,
        "exec_time": 0.0,
        "generate_from_target_prefix": False,
        "generated_texts": [_generated_text(sequence) for sequence in sequences],
        "generation_args": dict(first.generation),
        "include_eos_baseline": False,
        "input_texts": [sequence.prompt for sequence in sequences],
        "model_class": str(first.extra.get("architecture", "")),
        "model_name": first.model,
        "output_step_attributions": False,
        "step_scores": sorted(first.step_scores),
        "step_scores_args": {},
        "tokenizer_class": str(first.extra.get("tokenizer", "")),
        "tokenizer_name": first.model,
        "lensplorer": {"version": first.version, "timestamp": first.timestamp},
    }
    attributes = {"info": info, "sequence_attributions": [_sequence(sequence) for sequence in sequences], "step_attributions": None}
    return _instance("FeatureAttributionOutput", attributes)


def _generated_text(content: Attributions) -> str:
    return content.prompt + "".join(content.texts[content.start :])


def _sequence(content: Attributions) -> dict[str, Any]:
    tokens = [_instance("TokenWithId", {"token": p, "id": i}, module="inseq.utils.typing") for p, i in zip(content.pieces, content.token_ids)]
    attributes = {
        "attr_pos_start": content.start,
        "attr_pos_end": len(tokens),
        "source": tokens[: content.start],
        "target": tokens,
        "source_attributions": None,
        "target_attributions": _packed(content.scores.T),
        "step_scores": {name: _packed(values) for name, values in content.step_scores.items()},
        "sequence_scores": {},
    }
    return _instance("CoarseFeatureAttributionSequenceOutput", attributes)


def _instance(name: str, attributes: dict[str, Any], *, module: str = _MODULE) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": attributes}


def _packed(values: np.ndarray) -> str:
    from safetensors.numpy import save

    return base64.b64encode(save({_TENSOR: np.ascontiguousarray(values, dtype=np.float32)})).decode()


# -- reading ---------------------------------------------------------------------------------------------------------------------------


@expects
def read_inseq(path: str | Path, *, max_bytes: int = MAX_BYTES) -> list[Attributions]:
    """The sequences of a file that Inseq wrote, packed or not. Scores kept per step beside those per sequence are not read.

    >>> import tempfile
    >>> import numpy as np
    >>> import lensplorer as lp
    >>> content = lp.Attributions(("a", "b"), (0, 1), 1, np.array([[0.5, 0.0]]), model="m", method="occlusion")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lp.write_inseq(folder + "/a.json", content)
    ...     lp.read_inseq(folder + "/a.json")[0].token_ids
    (0, 1)

    A model with an encoder gives one row of tokens, the source before the target.

    Raises:
        FormatError: the file cannot be read, is larger than ``max_bytes``, or is not such a file; the message says where.
    """
    return from_inseq(read_json(path, what=_WHAT, max_bytes=max_bytes), name=path)


def from_inseq(document: Mapping[str, Any], *, name: str | Path = "document") -> list[Attributions]:
    """The sequences in a document of ``FeatureAttributionOutput.save``.

    Raises:
        FormatError: as ``read_inseq``.
    """
    wrong = damaged(name, _WHAT)
    kind, attributes = _parts(document, "the file", wrong)
    if kind != "FeatureAttributionOutput":
        raise wrong(f"it holds a {kind!r}, expected a 'FeatureAttributionOutput'.")
    info, sequences = attributes.get("info") or {}, attributes.get("sequence_attributions")
    if not isinstance(info, Mapping) or not isinstance(sequences, list):
        raise wrong("expected the object 'info' and the list 'sequence_attributions'.")
    return [_read_sequence(item, index, info, wrong) for index, item in enumerate(sequences)]


def _parts(value: Any, where: str, wrong: Wrong) -> tuple[str, Mapping[str, Any]]:
    kind = value.get("__instance_type__") if isinstance(value, Mapping) else None
    attributes = value.get("attributes") if isinstance(value, Mapping) else None
    if not isinstance(kind, list) or len(kind) != 2 or not isinstance(attributes, Mapping):
        raise wrong(f"{where} is no {{'__instance_type__', 'attributes'}}. A file saved with use_primitives=True cannot be read, nor by Inseq.")
    return str(kind[1]), attributes


def _read_sequence(value: Any, index: int, info: Mapping[str, Any], wrong: Wrong) -> Attributions:
    where = f"sequence_attributions[{index}]"
    kind, fields = _parts(value, where, wrong)
    source, target = (_read_tokens(fields.get(key), f"{where}.{key}", wrong) for key in ("source", "target"))
    start, end = fields.get("attr_pos_start", 0), fields.get("attr_pos_end")
    end = len(target) if end is None else end
    if not all(isinstance(edge, int) for edge in (start, end)) or not 0 <= start <= (end := min(end, len(target))):
        raise wrong(f"{where}: attr_pos_start {start!r} and attr_pos_end {end!r} do not fit its {len(target)} target tokens.")
    n_generated, target = end - start, target[:end]
    parts = []
    of_source, of_target = (
        _read_scores(fields.get(f"{part}_attributions"), kind, f"{where}.{part}_attributions", wrong) for part in ("source", "target")
    )
    if of_source is not None:
        parts.append(_fitting(of_source, len(source), n_generated, f"{where}.source_attributions", wrong))
    else:
        source = []
    if of_target is not None:
        parts.append(_fitting(of_target[:end], len(target), n_generated, f"{where}.target_attributions", wrong))
    else:
        parts.append(np.full((len(target), n_generated), np.nan, dtype=np.float32))
    tokens = [*source, *target]
    steps = fields.get("step_scores") or {}
    if not isinstance(steps, Mapping):
        raise wrong(f"{where}.step_scores is no object.")
    step_scores = {str(key): _unpacked(item, f"{where}.step_scores.{key}", wrong) for key, item in steps.items()}
    own = info.get("lensplorer")
    own = own if isinstance(own, Mapping) else {}
    prompts, generation = info.get("input_texts"), info.get("generation_args")
    return Attributions(
        pieces=tuple(piece for piece, _ in tokens),
        token_ids=tuple(token_id for _, token_id in tokens),
        start=len(source) + start,
        scores=np.concatenate(parts).T,
        model=str(info.get("model_name") or ""),
        version=str(own.get("version") or ""),
        prompt=str(prompts[index]) if isinstance(prompts, list) and index < len(prompts) else "",
        method=str(info.get("attribution_method") or ""),
        generation=generation if isinstance(generation, Mapping) else {},
        timestamp=str(own.get("timestamp") or ""),
        step_scores={key: values for key, values in step_scores.items() if values.shape == (n_generated,)},
        extra={
            "architecture": info.get("model_class") or "",
            "tokenizer": info.get("tokenizer_class") or "",
            "attributed_fn": info.get("attributed_fn") or "",
            "encoder_tokens": len(source),
        },
    )


def _read_tokens(value: Any, where: str, wrong: Wrong) -> list[tuple[str, int]]:
    if not isinstance(value, list):
        raise wrong(f"{where} is missing or no list.")
    found = []
    for index, item in enumerate(value):
        _, fields = _parts(item, f"{where}[{index}]", wrong)
        token, token_id = fields.get("token"), fields.get("id")
        if not isinstance(token, str) or isinstance(token_id, bool) or not isinstance(token_id, int):
            raise wrong(f"{where}[{index}] is {str(dict(fields))[:80]}: expected a text token and an integer id.")
        found.append((token, token_id))
    return found


def _read_scores(value: Any, kind: str, where: str, wrong: Wrong) -> np.ndarray | None:
    """Scores with the dimensions beyond source and generated token merged. [source, generated]"""
    if value is None:
        return None
    scores = _unpacked(value, where, wrong)
    if scores.ndim < 2:
        raise wrong(f"{where} has shape {scores.shape}: expected source tokens × generated tokens, and what the method adds.")
    if scores.ndim == 2:
        return scores
    beyond = tuple(range(2, scores.ndim))
    if kind.startswith("Granular"):
        return np.asarray(np.sqrt(np.square(scores, dtype=np.float64).sum(axis=beyond)), dtype=np.float32)
    if kind.startswith("MultiDimensional"):
        return np.asarray(scores.mean(axis=beyond, dtype=np.float64), dtype=np.float32)
    raise wrong(f"{where} has {scores.ndim} dimensions, and a {kind!r} does not say how to merge them. Save it after .aggregate().")


def _unpacked(value: Any, where: str, wrong: Wrong) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(base64.b64decode(value, validate=True))
        return np.asarray(tensors[_TENSOR].float().numpy())
    except (TypeError, ValueError, binascii.Error, SafetensorError, KeyError) as error:
        raise wrong(f"{where} is no array: expected safetensors in base64 with the tensor {_TENSOR!r} ({type(error).__name__}).") from error


def _fitting(scores: np.ndarray, n_source: int, n_generated: int, where: str, wrong: Wrong) -> np.ndarray:
    if scores.shape != (n_source, n_generated):
        raise wrong(f"{where} has shape {scores.shape}: expected {(n_source, n_generated)}, source tokens × generated tokens.")
    return scores
