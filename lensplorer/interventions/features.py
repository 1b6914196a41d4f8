"""Editing SAE and transcoder features, the error term kept: x becomes x + decode(f changed) - decode(f), so that what the dictionary does not
explain stays as it was, and an edit that changes no feature changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_hook
from lensplorer.interventions.values import ALL, Positions, PositionsLike, edit, index, where
from lensplorer.models import LensModel
from lensplorer.trace import Hook

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
    def of(cls, sae: Any) -> Dictionary:
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

    def encode(self, value: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_sae]; heads are laid side by side for an SAE of ``hook_z``."""
        if self.hook_in.endswith("hook_z") and value.shape[-1] != self.sae.cfg.d_in:
            value = value.flatten(-2)
        if value.shape[-1] != self.sae.cfg.d_in:
            raise AnalysisError(
                f"This SAE reads {self.sae.cfg.d_in} numbers at {self.hook_in!r} of {self.model or 'its model'}, and the model that runs has"
                f" {value.shape[-1]} there: it is an SAE of another model."
            )
        return self.sae.encode(value)


@dataclass(frozen=True, repr=False)
class FeatureEdit:
    """Features of a dictionary scaled or clamped, the error term kept. Made by ``scale_feature`` and its like."""

    dictionary: Dictionary
    features: tuple[int, ...]
    mode: str
    value: float
    positions: Positions = ALL

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        dictionary = self.dictionary
        for name in {dictionary.hook_in, dictionary.hook_out}:
            check_hook(model, name)
        seen: list[torch.Tensor] = []  # a transcoder's input, on its way to the output

        def keep(value: torch.Tensor, hook: Any) -> torch.Tensor:
            seen[:] = [value]
            return value

        def change(part: torch.Tensor, at: list[int]) -> torch.Tensor:
            rows = torch.tensor(at, device=part.device) - positions.start
            given = part if not seen else seen[0][:, rows]
            features = dictionary.encode(given)
            edited = features.clone()
            edited[..., list(self.features)] = self.value if self.mode == "clamp" else self.value * features[..., list(self.features)]
            before = dictionary.sae.decode(features)
            dictionary.encode(given)  # decode undoes a normalisation that encode leaves behind, once
            after = dictionary.sae.decode(edited)
            return part + (after - before).reshape(part.shape).to(part)

        hooks = edit(model, dictionary.hook_out, positions, change, positions=self.positions)
        if hooks and dictionary.hook_in != dictionary.hook_out:
            hooks = [(dictionary.hook_in, keep), *hooks]
        return hooks

    def __repr__(self) -> str:
        features = self.features[0] if len(self.features) == 1 else list(self.features)
        return f"{self.mode}_feature({self.dictionary!r}, {features}, {self.value:g}{where(self.positions)})"


def scale_feature(sae: Any, feature: int | Iterable[int], factor: float, *, positions: PositionsLike = None) -> FeatureEdit:
    """Multiply the activation of an SAE's or transcoder's feature, the error term kept.

    Args:
        sae: a sae-lens object (``load_sae`` gives one), or any with ``encode``, ``decode``, ``W_dec`` and ``cfg``.
        feature: index in d_sae, or several.
        factor: 1 changes nothing, 0 takes the feature out.
        positions: absolute positions, from 0 (see ``ablate``); None: all.

    Raises:
        AnalysisError: no such feature, or metadata without a hook; when it runs: an SAE of another model.
        TraceError: when it runs: the model has no such hook.
    """
    return _feature_edit(sae, feature, "scale", factor, positions)


def clamp_feature(sae: Any, feature: int | Iterable[int], value: float, *, positions: PositionsLike = None) -> FeatureEdit:
    """Set the activation of a feature to a value wherever it is, active or not, the error term kept. Arguments as ``scale_feature``."""
    return _feature_edit(sae, feature, "clamp", value, positions)


def ablate_feature(sae: Any, feature: int | Iterable[int], *, positions: PositionsLike = None) -> FeatureEdit:
    """Take a feature out, the error term kept: ``scale_feature`` by 0."""
    return _feature_edit(sae, feature, "scale", 0.0, positions)


def feature_direction(sae: Any, feature: int) -> torch.Tensor:
    """The decoder's row of a feature, to steer with. [d_out]

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


def _feature_edit(sae: Any, feature: int | Iterable[int], mode: str, value: float, positions: PositionsLike) -> FeatureEdit:
    dictionary = Dictionary.of(sae)
    if mode == "scale" and float(value) == 0:  # taking a feature out is setting it to nothing
        mode = "clamp"
    return FeatureEdit(dictionary, _features(dictionary, feature), mode, float(value), Positions.of(positions))
