"""Editing SAE and transcoder features, the error term kept: x becomes x + decode(f changed) - decode(f), so that what the dictionary does not
explain stays as it was, and an edit that changes no feature changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_editable
from lensplorer.interventions.values import ALL, Positions, PositionsLike, check_finite, index, where
from lensplorer.models import LensModel
from lensplorer.running import Hook

if TYPE_CHECKING:
    from lensplorer.saes.info import SAE

_SAMPLED_ROWS = 64


@dataclass(frozen=True, repr=False)
class Dictionary:
    """An SAE or transcoder as a value: two with the same hooks, size and weights are the same.

    Attributes:
        hook_in, hook_out: what its features are read from, and what they are part of.
        model: the model it was trained on, as its metadata say; empty if they do not.
        fingerprint: of its decoder's weights.
    """

    hook_in: str
    hook_out: str
    model: str
    d_sae: int
    fingerprint: str
    sae: Any = field(compare=False)

    @classmethod
    def of(cls, sae: SAE) -> Dictionary:
        """
        Raises:
            AnalysisError: it has no encode and decode, or its metadata do not name its hook.
        """
        if isinstance(sae, Dictionary):
            return sae
        if not (hasattr(sae, "encode") and hasattr(sae, "decode") and hasattr(sae, "cfg")):
            raise AnalysisError(f"Features are those of an SAE with encode, decode and cfg (load_sae gives one), not of {type(sae).__name__}.")
        metadata = getattr(sae.cfg, "metadata", None)
        hook = getattr(metadata, "hook_name", None)
        if not hook:
            raise AnalysisError("This SAE's metadata do not name the hook it was trained at: set sae.cfg.metadata.hook_name.")
        weight = sae.W_dec.detach()  # [d_sae, d_out]
        rows = weight[:: max(1, len(weight) // _SAMPLED_ROWS)].float().cpu().contiguous()
        fingerprint = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
        out = getattr(metadata, "hook_name_out", None) or hook
        return cls(str(hook), str(out), str(getattr(metadata, "model_name", None) or ""), int(sae.cfg.d_sae), fingerprint, sae)

    def __repr__(self) -> str:
        return f"sae({self.hook_out!r}, {self.d_sae})"


@dataclass(frozen=True, repr=False)
class FeatureEdit:
    """Features of a dictionary scaled or clamped, the error term kept. Made by ``scale_feature`` and its like."""

    dictionary: Dictionary
    features: tuple[int, ...]
    mode: str
    value: float
    positions: Positions = ALL

    def __post_init__(self) -> None:
        if self.mode not in ("scale", "clamp") or _features(self.dictionary, self.features) != self.features:
            raise AnalysisError(f"Features are scaled or clamped, each once, in order, got {self.mode!r} of {self.features}.")
        check_finite("value", self.value)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        from lensplorer.saes.audit import check_sae
        from lensplorer.saes.codes import splice_hooks

        sae = self.dictionary.sae
        site = check_sae(model, sae)
        check_editable(model, site.write)
        at = self.positions.within(positions)
        if not at:
            return []
        keep = torch.ones(len(positions), dtype=torch.bool)
        keep[torch.tensor(at) - positions.start] = False
        return splice_hooks(sae, site, error_term=True, edit=self._edited, keep=keep)[1]

    def _edited(self, features: torch.Tensor) -> torch.Tensor:
        """[..., d_sae] → [..., d_sae]"""
        chosen = list(self.features)
        edited = features.clone()
        edited[..., chosen] = self.value if self.mode == "clamp" else self.value * features[..., chosen]
        return edited

    def __repr__(self) -> str:
        features = self.features[0] if len(self.features) == 1 else list(self.features)
        return f"{self.mode}_feature({self.dictionary!r}, {features}, {self.value:g}{where(self.positions)})"


@expects
def scale_feature(sae: SAE, feature: int | Iterable[int], factor: float, *, positions: PositionsLike = None) -> FeatureEdit:
    """Multiply the activation of an SAE's or transcoder's feature, the error term kept.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> same = lp.run_trace(model, "Once upon a time", interventions=[lp.scale_feature(sae, 7, 1.0)])
    >>> float((same.logits - lp.run_trace(model, "Once upon a time").logits).abs().max()) < 1e-3
    True

    Args:
        sae: a sae-lens object (``load_sae`` gives one), or any with ``encode``, ``decode``, ``W_dec`` and ``cfg``.
        feature: index in d_sae, or several.
        factor: 1 changes nothing, 0 takes the feature out.
        positions: absolute positions, from 0 (see ``ablate``); None: all.

    Raises:
        AnalysisError: no such feature, or metadata without a hook.
        SAEError: when it runs: an SAE of another model, or trained on other weights of it; the message names both sides.
    """
    return _feature_edit(sae, feature, "scale", factor, positions)


@expects
def clamp_feature(sae: SAE, feature: int | Iterable[int], value: float, *, positions: PositionsLike = None) -> FeatureEdit:
    """Set the activation of a feature to a value wherever it is, active or not, the error term kept. Arguments as ``scale_feature``.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> trace = lp.run_trace(model, "Once upon a time", interventions=[lp.clamp_feature(sae, 7, 5.0, positions=[3])])
    >>> len(trace.interventions)
    1

    Raises:
        AnalysisError, SAEError: as ``scale_feature``.
    """
    return _feature_edit(sae, feature, "clamp", value, positions)


@expects
def ablate_feature(sae: SAE, feature: int | Iterable[int], *, positions: PositionsLike = None) -> FeatureEdit:
    """Take a feature out, the error term kept: ``scale_feature`` by 0.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> trace = lp.run_trace(model, "Once upon a time", interventions=[lp.ablate_feature(sae, [7, 8])])
    >>> len(trace.interventions)
    1

    Raises:
        AnalysisError, SAEError: as ``scale_feature``.
    """
    return _feature_edit(sae, feature, "scale", 0.0, positions)


@expects
def feature_direction(sae: SAE, feature: int) -> torch.Tensor:
    """The decoder's row of a feature, to steer with. [d_out]

    >>> import lensplorer as lp
    >>> tuple(lp.feature_direction(lp.load_sae("storyworld", "resid_2"), 7).shape)
    (128,)

    Raises:
        AnalysisError: no such feature.
    """
    dictionary = Dictionary.of(sae)
    return dictionary.sae.W_dec.detach()[_features(dictionary, feature)[0]].float().cpu().clone()


def _features(dictionary: Dictionary, feature: int | Iterable[int]) -> tuple[int, ...]:
    features = tuple(sorted({index("feature", f) for f in ([feature] if isinstance(feature, int) else feature)}))
    if not features or features[-1] >= dictionary.d_sae:
        raise AnalysisError(f"Features {list(features)} are asked of an SAE with features 0 to {dictionary.d_sae - 1}.")
    return features


def _feature_edit(sae: SAE, feature: int | Iterable[int], mode: str, value: float, positions: PositionsLike) -> FeatureEdit:
    dictionary = Dictionary.of(sae)
    if mode == "scale" and float(value) == 0:  # taking a feature out is setting it to nothing
        mode = "clamp"
    return FeatureEdit(dictionary, _features(dictionary, feature), mode, float(value), Positions.of(positions))
