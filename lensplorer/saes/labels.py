"""What a feature is about: labels stored beside the SAE, else the tokens that it promotes; and its page on Neuronpedia.

A feature's direct effect on the logits is its decoder direction through the final norm's weight and the unembedding (the norm's scale is one
positive number per position and does not change the order): ``(d - mean(d) under LayerNorm) ⊙ γ · W_U``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.errors import SAEError
from lensplorer.norms import read_norm
from lensplorer.saes.info import sae_info
from lensplorer.saes.site import find_site
from lensplorer.tokens import token_texts, visible

if TYPE_CHECKING:
    from lensplorer.models import LensModel

_CHUNK = 2**24  # logits at a time in float32: 64 MiB
_SHOWN = 4  # tokens in a label's one line


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


def feature_labels(model: LensModel, sae: Any, features: Iterable[int], *, tokens: int = 8) -> list[FeatureLabel]:
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
    if stored_labels(sae) is not None:
        labels = _stored(info.labels_path, info.neuronpedia_id, tokens)
        return [labels[feature] for feature in wanted]
    found = []
    for feature, texts in zip(wanted, promoted_tokens(model, sae, wanted, tokens=tokens), strict=True):
        line = " ".join(visible(text) for text in texts[:_SHOWN])
        found.append(FeatureLabel(feature, line, "top tokens", tuple(texts), url=neuronpedia_url(info.neuronpedia_id, feature)))
    return found


def promoted_tokens(model: LensModel, sae: Any, features: Sequence[int], *, tokens: int = 8) -> list[list[str]]:
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


def stored_labels(sae: Any) -> list[dict[str, Any]] | None:
    """The labels stored beside an SAE, one entry per feature; None if there are none.

    Raises:
        SAEError: the file cannot be read or does not fit the SAE.
    """
    info = sae_info(sae)
    if info.labels_path is None:
        return None
    entries = _read_labels(info.labels_path)
    if len(entries) != info.d_sae:
        raise SAEError(f"{str(info.labels_path)!r} labels {len(entries)} features, and the SAE has {info.d_sae}.")
    return entries


@lru_cache(maxsize=32)
def _read_labels(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SAEError(f"The labels {str(path)!r} cannot be read: {error!r}") from error
    return list(entries)


@lru_cache(maxsize=32)
def _stored(path: Path, neuronpedia_id: str | None, tokens: int) -> tuple[FeatureLabel, ...]:
    """The labels of a file, by feature. Cost: 10 µs a feature, once."""
    labels = []
    for feature, entry in enumerate(_read_labels(path)):
        promotes = tuple(entry.get("promotes", ()))[:tokens]
        examples = tuple((str(text), float(value)) for text, value in entry.get("examples", ()))
        text = entry.get("label") or " ".join(visible(token) for token in promotes[:_SHOWN]) or (examples[0][0] if examples else "never fires")
        url = neuronpedia_url(neuronpedia_id, feature)
        labels.append(FeatureLabel(feature, str(text), "stored", promotes, examples, entry.get("density"), url))
    return tuple(labels)


def check_feature(sae: Any, feature: int) -> int:
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


def _to_stream(model: LensModel, sae: Any, directions: torch.Tensor) -> torch.Tensor:
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
