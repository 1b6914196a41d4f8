"""LayerNorms and RMSNorms as numbers, on either backend.

A norm with its statistics frozen is linear, and ``Norm.pull_back`` is its transpose: it carries a direction after the norm to the direction
before it. That is the whole of exact direct attribution (see ``analyses.residual``), and what a linear run does at each norm (see ``linear``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lensplorer.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm as numbers: ``(x - mean if centred) / scale · weight + bias``.

    Attributes:
        centred: LayerNorm subtracts the mean, RMSNorm does not.
        eps: added to the mean square.
        weight, bias: [d_model], or None where they are folded into what follows.
    """

    centred: bool
    eps: float
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def scale(self, residual: torch.Tensor) -> torch.Tensor:
        """What ``residual`` is divided by. [..., d_model] → [..., 1]"""
        return (self._centre(residual).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, residual: torch.Tensor, *, frozen: bool = False) -> torch.Tensor:
        """[..., d_model] → [..., d_model]

        Args:
            frozen: no gradient goes through the scale, so that the gradient is that of a linear map.
        """
        centred = self._centre(residual)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            scale = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        normed = centred / scale
        if self.weight is not None:
            normed = normed * self.weight.to(normed.dtype)
        return normed if self.bias is None else normed + self.bias.to(normed.dtype)

    def held(self, residual: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The norm with its scale held at that of another residual, and without its bias: linear. [..., d_model], [..., 1] → [..., d_model]"""
        normed = self._centre(residual) / scale
        return normed if self.weight is None else normed * self.weight.to(normed.dtype)

    def pull_back(self, directions: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The directions before the norm that read what ``directions`` read after it, its scale frozen.

        Args:
            directions: [d_model, direction]
            scale: of the residual in question. [1]
        """
        if self.weight is not None:
            directions = directions * self.weight.to(directions.dtype)[:, None]
        if self.centred:  # centring is a symmetric projection
            directions = directions - directions.mean(0)
        return directions / scale.to(directions.dtype)

    def constant(self, directions: torch.Tensor) -> torch.Tensor:
        """What the bias adds along ``directions``. [d_model, direction] → [direction]"""
        if self.bias is None:
            return directions.new_zeros(directions.shape[1])
        return self.bias.to(directions.dtype) @ directions

    def _centre(self, residual: torch.Tensor) -> torch.Tensor:
        return residual - residual.mean(-1, keepdim=True) if self.centred else residual


def read_norm(module: Any, cfg: Any) -> Norm | None:
    """The norm that ``module`` computes, on either backend; None where it is the identity.

    Raises:
        AnalysisError: it is a norm of another kind.
    """
    kind = type(module).__name__
    if hasattr(module, "uses_rms_norm"):  # the bridge's wrapper of a Hugging Face module
        original = module.original_component
        if isinstance(original, torch.nn.Identity):
            return None
        weight = getattr(original, "weight", None)
        if weight is not None and getattr(cfg, "rmsnorm_uses_offset", False):
            weight = 1 + weight.float()
        centred = not module.uses_rms_norm
        eps = next((value for value in (getattr(original, "eps", None), getattr(original, "variance_epsilon", None)) if value is not None), cfg.eps)
        return Norm(centred, float(eps), weight, getattr(original, "bias", None) if centred else None)
    if kind in ("LayerNorm", "LayerNormPre", "RMSNorm", "RMSNormPre"):
        return Norm(kind.startswith("Layer"), float(module.eps), getattr(module, "w", None), getattr(module, "b", None))
    if isinstance(module, torch.nn.Identity):
        return None
    raise AnalysisError(f"This model's norm is a {kind}, which is not known here: expected a LayerNorm or an RMSNorm.")
