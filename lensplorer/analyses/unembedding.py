"""From the residual stream to logits: ``softcap(W_U · norm_final(h) + b_U)``, for any residual of any supported model.

The final norm's statistics are those of the residual given, not the ones cached for the final layer. Both backends are read through their
weights: a ``HookedTransformer`` keeps gains folded away (``LayerNormPre``) or raw (``LayerNorm``), a ``TransformerBridge`` raw, as an offset
from one in the Gemma family. The arithmetic is float32 (float64 for a float64 model), whatever the model's dtype. No module of the model
is called, so that no hook fires.
"""

from __future__ import annotations

import torch

from lensplorer.models import LensModel
from lensplorer.norms import read_norm
from lensplorer.products import is_product_of_few, product_of_few

#: Largest |Δ| that rounding explains, relative to the largest value at hand. In float32 the order of summation; in the half precisions the
#: model's own rounding of each of its sums and products, which arithmetic in float32 does not repeat.
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_BLOCK = 2**23  # elements of W_U at a time where it is converted to float32, or multiplied by few rows: 32 MiB


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
