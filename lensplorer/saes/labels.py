"""What a feature is about: labels stored beside the SAE or given with it, else the tokens that it promotes; and its page on Neuronpedia.

A feature's direct effect on the logits is its decoder direction through the final norm's weight and the unembedding (the norm's scale is one
positive number per position and does not change the order): ``(d - mean(d) under LayerNorm) ⊙ γ · W_U``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import FormatError, SAEError, first_line
from lensplorer.formats.files import read_bytes
from lensplorer.norms import read_norm
from lensplorer.saes.feature_files import read_feature_notes
from lensplorer.saes.info import SAE, SAEInfo, sae_info
from lensplorer.saes.site import find_site
from lensplorer.tokens import token_texts, visible

if TYPE_CHECKING:
    from lensplorer.models import LensModel

_CHUNK = 2**24  # logits at a time in float32: 64 MiB
_SHOWN = 4  # tokens in a label's one line
_OWN = "lensplorer"

#: Name of the labels stored beside an SAE: {"features": [{label, promotes, examples, density}, …]}, one for each feature.
LABELS = "labels.json"


@dataclass(frozen=True)
class FeatureLabel:
    """What is known about one feature.

    Attributes:
        feature: its index in d_sae.
        text: one line: a stored name, or its top tokens.
        kind: where the text is from: ``"stored"`` or ``"top tokens"``.
        promotes: the tokens whose logits its direction raises most, best first.
        examples: (text with the active token in «», activation), strongest first; stored labels only.
        density: share of tokens on which it fires; stored labels only.
        url: its page on Neuronpedia, if its release has one.
    """

    feature: int
    text: str
    kind: str
    promotes: tuple[str, ...] = ()
    examples: tuple[tuple[str, float], ...] = ()
    density: float | None = None
    url: str | None = None


@expects
def feature_labels(model: LensModel, sae: SAE, features: Iterable[int], *, tokens: int = 8) -> list[FeatureLabel]:
    """What features are about, in the order given.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> [label.feature for label in lp.feature_labels(model, sae, [3, 5])]
    [3, 5]

    Args:
        model: the model that the SAE is of.
        sae: from ``load_sae``.
        features: indices in d_sae.
        tokens: how many promoted tokens.

    Raises:
        SAEError: a feature outside the SAE, or an SAE whose directions do not reach this model's unembedding.

    Cost: stored labels are read once per SAE; else features · d_model · d_vocab, in chunks.
    """
    info = sae_info(sae)
    wanted = [check_feature(sae, feature) for feature in features]
    found: dict[int, FeatureLabel] = {}
    if stored_labels(sae) is not None:
        assert info.labels_path is not None
        labels = _stored(info.labels_path, info.neuronpedia_id, tokens)
        found = {feature: labels[feature] for feature in wanted if feature in labels}
    rest = [feature for feature in wanted if feature not in found]
    for feature, texts in zip(rest, promoted_tokens(model, sae, rest, tokens=tokens), strict=True):
        line = " ".join(visible(text) for text in texts[:_SHOWN])
        found[feature] = FeatureLabel(feature, line, "top tokens", tuple(texts), url=neuronpedia_url(info.neuronpedia_id, feature))
    return [found[feature] for feature in wanted]


def promoted_tokens(model: LensModel, sae: SAE, features: Sequence[int], *, tokens: int = 8) -> list[list[str]]:
    """The tokens that each feature's direction promotes most, best first.

    Raises:
        SAEError: as ``feature_labels``.
    """
    if not features:
        return []
    W_U: torch.Tensor = model.W_U  # type: ignore[attr-defined]  # [d_model, d_vocab]
    d_vocab = W_U.shape[1]
    directions = _to_stream(model, sae, sae.W_dec[list(features)].detach().float()).to(W_U.device)
    norm = read_norm(model.ln_final, model.cfg) if hasattr(model, "ln_final") else None
    if norm is not None and norm.centred:
        directions = directions - directions.mean(-1, keepdim=True)
    if norm is not None and norm.weight is not None:
        directions = directions * norm.weight
    step = max(1, _CHUNK // d_vocab)
    parts: list[torch.Tensor] = [directions[start : start + step] for start in range(0, len(directions), step)]
    best = [(part.to(W_U.dtype) @ W_U).topk(min(tokens, d_vocab)).indices.cpu() for part in parts]  # each [feature, token]
    return [token_texts(model.tokenizer, row) for row in torch.cat(best).tolist()]


def stored_labels(sae: SAE) -> Mapping[int, Mapping[str, Any]] | None:
    """The labels stored beside an SAE or given with it, by feature; None if there are none. A file of other programs may hold a few features only.

    Raises:
        SAEError: they cannot be read, or are of another SAE.
    """
    info = sae_info(sae)
    if info.labels_path is None:
        return None
    try:
        source, entries = _read_labels(info.labels_path)
    except FileNotFoundError:  # its folder was removed meanwhile
        return None
    _check_fit(info, source, entries)
    return entries


def _check_fit(info: SAEInfo, source: str | None, entries: Mapping[int, Mapping[str, Any]]) -> None:
    path = str(info.labels_path)
    if source == _OWN and len(entries) != info.d_sae:
        raise SAEError(f"{path!r} labels {len(entries)} features, and the SAE has {info.d_sae}.")
    if max(entries, default=0) >= info.d_sae:
        raise SAEError(f"{path!r} labels the feature {max(entries)}, and the SAE {info.name!r} has {info.d_sae}: they are of another SAE.")
    if source not in (None, _OWN) and info.neuronpedia_id is not None and "/" in str(source) and source != info.neuronpedia_id:
        raise SAEError(f"{path!r} says that it is of {source!r}, and the SAE {info.name!r} is {info.neuronpedia_id!r} on Neuronpedia.")


@lru_cache(maxsize=32)
def _read_labels(path: Path) -> tuple[str | None, dict[int, dict[str, Any]]]:
    """Which SAE the labels say they are of, and an entry {label, promotes, examples, density} by feature."""
    try:
        if not path.exists():
            raise FileNotFoundError(path)
        own = json.loads(read_bytes(path)) if path.suffix == ".json" else None
        if isinstance(own, dict) and isinstance(own.get("features"), list):
            if not all(isinstance(entry, dict) for entry in own["features"]):
                raise SAEError(f"The labels {str(path)!r} are damaged: expected a table for each feature. Remove the file.")
            return _OWN, dict(enumerate(own["features"]))
        notes = read_feature_notes(path)
    except (FormatError, ValueError, RecursionError) as error:
        raise SAEError(f"The labels {str(path)!r} cannot be read: {first_line(error)} Remove the file.") from error
    said = {feature: found for feature, found in notes.features.items() if found.label or found.promotes or found.examples}
    return notes.source, {feature: asdict(found) for feature, found in said.items()}


@lru_cache(maxsize=32)
def _stored(path: Path, neuronpedia_id: str | None, tokens: int) -> dict[int, FeatureLabel]:
    """The labels of a file, by feature. Cost: 10 µs a feature, once."""
    labels = {}
    for feature, entry in _read_labels(path)[1].items():
        try:
            promotes = tuple(map(str, entry.get("promotes", ())))[:tokens]
            examples = tuple((str(text), float(value)) for text, value in entry.get("examples", ()))
            density = None if entry.get("density") is None else float(entry["density"])
        except (TypeError, ValueError) as error:
            raise SAEError(f"The label of feature {feature} in {str(path)!r} is damaged: {first_line(error)}. Remove the file.") from error
        text = entry.get("label") or " ".join(visible(token) for token in promotes[:_SHOWN]) or (examples[0][0] if examples else "never fires")
        url = neuronpedia_url(neuronpedia_id, feature)
        labels[feature] = FeatureLabel(feature, str(text), "stored", promotes, examples, density, url)
    return labels


def check_feature(sae: SAE, feature: int) -> int:
    """``feature`` if the SAE has it.

    Raises:
        SAEError: it does not; the message gives the range.
    """
    d_sae = sae_info(sae).d_sae
    if not 0 <= int(feature) < d_sae:
        raise SAEError(f"Feature {int(feature)} is outside the SAE {sae_info(sae).name!r}: expected 0 to {d_sae - 1}.")
    return int(feature)


def neuronpedia_url(neuronpedia_id: str | None, feature: int | None = None) -> str | None:
    """The page of an SAE, or of one of its features, on Neuronpedia; None without an id.

    >>> neuronpedia_url("gpt2-small/8-res-jb", 17)
    'https://www.neuronpedia.org/gpt2-small/8-res-jb/17'
    """
    if not neuronpedia_id:
        return None
    return f"https://www.neuronpedia.org/{neuronpedia_id}" + (f"/{feature}" if feature is not None else "")


def _to_stream(model: LensModel, sae: SAE, directions: torch.Tensor) -> torch.Tensor:
    """Decoder directions as they enter the residual stream; those of an SAE of attention heads go through W_O. [feature, d_model]"""
    site = find_site(model, sae)
    if site.write.endswith(".attn.hook_z"):
        W_O = model.blocks[int(site.write.split(".")[1])].attn.W_O.float()  # type: ignore[attr-defined]  # [head, d_head, d_model]
        W_O = W_O[site.head] if site.head is not None else W_O.flatten(0, 1)
        return directions.to(W_O.device) @ W_O
    if site.write.rsplit(".", 1)[-1] in ("hook_pre", "hook_post", "hook_q", "hook_k", "hook_v") or directions.shape[-1] != int(model.cfg.d_model):
        raise SAEError(
            f"The directions of {sae_info(sae).name!r} are in {site.write!r}, which does not reach the logits directly: it has no top tokens."
        )
    return directions
