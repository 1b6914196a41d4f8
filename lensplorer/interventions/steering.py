"""Steering: a vector added to the residual stream, given as numbers or as the contrast of two sets of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_layer
from lensplorer.interventions.values import ALL, Positions, PositionsLike, Reference, check_finite, edit, index, option, where
from lensplorer.models import LensModel
from lensplorer.running import Hook


@dataclass(frozen=True, repr=False)
class Direction:
    """A vector of the residual stream, as numbers. [d_model]"""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise AnalysisError(f"A direction is a finite vector [d_model] or a pair (positive, negative), got {len(self.values)} numbers.")

    def vector(self, model: LensModel, hook: str) -> torch.Tensor:
        return torch.tensor(self.values)

    def __repr__(self) -> str:
        norm = sum(value**2 for value in self.values) ** 0.5
        return f"direction of {len(self.values)}, norm {norm:.3g}, {', '.join(f'{v:.3g}' for v in self.values[:3])}, …"


@dataclass(frozen=True, repr=False)
class Contrast:
    """The mean activation of some runs minus that of others, each at one position of the run (-1 is its last)."""

    positive: tuple[Reference, ...]
    negative: tuple[Reference, ...]
    position: int = -1

    def __post_init__(self) -> None:
        if not (self.positive and self.negative):
            raise AnalysisError("A contrast needs at least one trace or text on each side.")

    def vector(self, model: LensModel, hook: str) -> torch.Tensor:
        return self._mean(self.positive, model, hook) - self._mean(self.negative, model, hook)

    def _mean(self, references: tuple[Reference, ...], model: LensModel, hook: str) -> torch.Tensor:
        return torch.stack([self._at(reference.activation(model, hook)) for reference in references]).mean(0)

    def _at(self, activation: torch.Tensor) -> torch.Tensor:
        if not -len(activation) <= self.position < len(activation):
            raise AnalysisError(f"Position {self.position} is outside a contrasted prompt of {len(activation)} tokens.")
        return activation[self.position]

    def __repr__(self) -> str:
        return f"{list(self.positive)} against {list(self.negative)}{option('position', self.position, -1)}"


@dataclass(frozen=True, repr=False)
class Steer:
    """A vector added to the residual stream. Made by ``steer``."""

    direction: Direction | Contrast
    layer: int
    strength: float = 1.0
    positions: Positions = ALL

    def __post_init__(self) -> None:
        check_finite("strength", self.strength)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        check_layer(model, self.layer, rows=True)
        name = _stream(self.layer, int(model.cfg.n_layers))
        added = self.strength * self.direction.vector(model, name)  # [d_model]

        def change(part: torch.Tensor, at: list[int]) -> torch.Tensor:
            if added.shape != part.shape[2:]:
                raise AnalysisError(f"A vector of {list(added.shape)} cannot steer a residual stream of {list(part.shape[2:])}.")
            return part + added.to(part)

        return edit(model, name, positions, change, positions=self.positions)

    def __repr__(self) -> str:
        return f"steer({self.direction!r}, layer={self.layer}, strength={self.strength:g}{where(self.positions)})"


def _stream(row: int, n_layers: int) -> str:
    return f"blocks.{row}.hook_resid_pre" if row < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"


@expects
def steer(
    direction: torch.Tensor | Iterable[float] | tuple[Any, Any],
    layer: int,
    strength: float = 1.0,
    *,
    positions: PositionsLike = None,
    contrast_position: int = -1,
) -> Steer:
    """Add a vector to the residual stream.

    >>> steer((" red", " blue"), layer=2, strength=4, positions=slice(3, None))
    steer(['␠red'] against ['␠blue'], layer=2, strength=4, positions=slice(3, None))

    Args:
        direction: a vector [d_model], e.g. ``feature_direction(sae, feature)``; or a contrast (positive, negative), each a trace or text, or a
            list of them: the difference of their mean residual streams at ``contrast_position``.
        layer: row of the residual stream: 0 is the embedding, l what enters block l, n_layers what leaves the last.
        strength: the vector is multiplied by it.
        positions: absolute positions (see ``ablate``); None: all.
        contrast_position: position of the contrasted runs that is compared; -1 is each one's last.

    Raises:
        AnalysisError: the direction is neither; when it runs: of another width than the model, or a layer out of range.

    Cost: one run over each contrasted prompt, the first time, unless its trace read that row.
    """
    layer = index("layer", layer)
    found: Direction | Contrast
    if isinstance(direction, tuple) and len(direction) == 2 and not any(isinstance(side, (int, float)) for side in direction):
        row = [f"blocks.{layer}.hook_resid_pre", f"blocks.{layer - 1}.hook_resid_post"]  # whichever the model has
        found = Contrast(Reference.several(direction[0], row), Reference.several(direction[1], row), contrast_position)
    else:
        vector = torch.as_tensor(direction if isinstance(direction, torch.Tensor) else list(direction), dtype=torch.float32).detach().cpu()
        if vector.ndim != 1 or not len(vector) or not bool(vector.isfinite().all()):
            raise AnalysisError(f"A direction is a finite vector [d_model] or a pair (positive, negative), got shape {list(vector.shape)}.")
        found = Direction(tuple(vector.tolist()))
    return Steer(found, layer, float(strength), Positions.of(positions))
