"""The product of a few rows with a large weight, which is most of a one-token step."""

from __future__ import annotations

import torch

_FEW = 64  # up to so many rows, the product is bound by reading the weight
_FEWEST = 16  # up to so many, the weight is best taken as the rows, and these as the columns
_LARGE = 2**20  # elements of a weight that does not stay in the processor's cache


def is_product_of_few(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``product_of_few`` is at hand, and the faster: few float32 rows on a CPU, without gradients, and a large weight.

    The weight is stored column by column, or for a single row either way.

    Args:
        rows: [..., d_in]
        weight: [d_in, d_out]
    """
    few = 0 < rows.numel() <= _FEW * len(weight) and weight.numel() >= _LARGE
    fits = rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu"
    lies = weight.T.is_contiguous() or (rows.numel() == len(weight) and weight.is_contiguous())
    learns = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    return few and fits and lies and not learns and _has_onednn()


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def product_of_few(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``rows @ weight + bias`` by oneDNN, which reads the weight as it lies and with all threads. [..., d_in] → [..., d_out]

    The usual product first copies the weight to a layout of its own, which costs more than multiplying a dozen rows, and gives one row to one thread.
    The result may be stored column by column.
    """
    flat, columns = rows.detach().reshape(-1, len(weight)), weight.detach().T
    bias = None if bias is None else bias.detach()
    if 1 < len(flat) <= _FEWEST:
        found = _linear(columns, flat, None).T
        found = found if bias is None else found + bias
    else:
        found = _linear(flat, columns, bias)
    return found.reshape(*rows.shape[:-1], -1)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, the operator to which torch compiles a linear layer. [row, d_in], [d_out, d_in] → [row, d_out]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
