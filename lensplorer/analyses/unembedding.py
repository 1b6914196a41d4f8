"""From the residual stream to logits: ``softcap(W_U · norm_final(h) + b_U)``, for any residual of any supported model.

The final norm's statistics are those of the residual given, not the ones cached for the final layer. Both backends are read through their
weights: a ``HookedTransformer`` keeps gains folded away (``LayerNormPre``) or raw (``LayerNorm``), a ``TransformerBridge`` raw, as an offset
from one in the Gemma family. The arithmetic is float32 (float64 for a float64 model), whatever the model's dtype. No module of the model
is called, so that no hook fires.

A norm with its statistics frozen is linear, and ``Norm.pull_back`` is its transpose: it carries a direction after the norm to the direction
before it. That is the whole of exact direct attribution (see ``residual``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lensplorer.errors import AnalysisError
from lensplorer.models import LensModel
from lensplorer.products import is_product_of_few, product_of_few

#: Largest |Δ| that rounding explains, relative to the largest value at hand. In float32 the order of summation; in the half precisions the
#: model's own rounding of each of its sums and products, which arithmetic in float32 does not repeat.
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_BLOCK = 2**23  # elements of W_U at a time where it is converted to float32, or multiplied by few rows: 32 MiB


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

    def __call__(self, residual: torch.Tensor) -> torch.Tensor:
        """[..., d_model] → [..., d_model]"""
        centred = self._centre(residual)
        normed = centred / (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
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


class Unembedding:
    """The end of a model, from a residual of any layer to logits.

    Attributes:
        norm: the final norm, or None.
        weight: W_U. [d_model, d_vocab]
        bias: b_U, or None where it is zero. [d_vocab]
        soft_cap: the output soft cap c of ``c · tanh(z / c)``, or None.
        dtype: in which logits are computed.
    """

    def __init__(self, model: LensModel) -> None:
        cfg = model.cfg
        self.norm = read_norm(model.ln_final, cfg) if hasattr(model, "ln_final") else None
        self.weight: torch.Tensor = model.W_U.detach()  # type: ignore[attr-defined]
        bias = getattr(model, "b_U", None)
        self.bias: torch.Tensor | None = bias.detach() if bias is not None and bool(bias.any()) else None
        cap = float(getattr(cfg, "output_logits_soft_cap", None) or 0)
        self.soft_cap = cap if cap > 0 else None
        self.dtype = torch.promote_types(self.weight.dtype, torch.float32)

    @property
    def d_vocab(self) -> int:
        return int(self.weight.shape[1])

    def normed(self, residual: torch.Tensor) -> torch.Tensor:
        """norm_final(h), with the statistics of h itself. [..., d_model], float32"""
        residual = residual.detach().to(self.dtype)
        return residual if self.norm is None else self.norm(residual)

    def logits(self, residual: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """softcap(W_U · norm_final(h) + b_U). [row, d_model] → [row, d_vocab], float32

        Args:
            residual: any layer's.
            out: where to write the logits.

        Cost: row · d_model · d_vocab; weights of half precision are converted block by block.
        """
        with torch.no_grad():
            normed = self.normed(residual)
            z = normed.new_empty(len(normed), self.d_vocab) if out is None else out
            step = self.d_vocab if self._whole(normed) else max(1, _BLOCK // len(self.weight))
            for start in range(0, self.d_vocab, step):
                block = slice(start, start + step)
                weight, bias = self.weight[:, block].to(self.dtype), None if self.bias is None else self.bias[block].to(self.dtype)
                if is_product_of_few(normed, weight):
                    z[:, block] = product_of_few(normed, weight, bias)
                elif bias is None:
                    torch.mm(normed, weight, out=z[:, block])
                else:
                    torch.addmm(bias, normed, weight, out=z[:, block])
            return self.capped(z)

    def _whole(self, normed: torch.Tensor) -> bool:
        """Whether W_U is multiplied in one piece, not block by block: where it is not converted, and the product writes where it should."""
        return self.weight.dtype == self.dtype and not is_product_of_few(normed, self.weight)

    def capped(self, z: torch.Tensor) -> torch.Tensor:
        """The soft cap, in place."""
        return z if self.soft_cap is None else z.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


def unembed(model: LensModel, residual: torch.Tensor) -> torch.Tensor:
    """The logits that the model would give if ``residual`` were its final residual stream.

    Args:
        model: a HookedTransformer or TransformerBridge.
        residual: of any layer. [..., d_model]

    Returns:
        softcap(W_U · norm_final(residual) + b_U). [..., d_vocab], float32
    """
    rows = residual.reshape(-1, residual.shape[-1])
    return Unembedding(model).logits(rows).reshape(*residual.shape[:-1], -1)
