"""The product of a few rows with a large weight, which is most of a one-token step."""

from __future__ import annotations

import torch

_FEW = 64  # up to so many rows, the product is bound by reading the weight


def is_product_of_few(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``product_of_few`` is at hand, and the faster: few float32 rows on a CPU, without gradients, the weight stored column by column.

    Args:
        rows: [..., d_in]
        weight: [d_in, d_out]
    """
    fits = rows.dtype == weight.dtype == torch.float32 and rows.device.type == "cpu" and weight.T.is_contiguous()
    learns = torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad)
    return fits and not learns and 0 < rows.numel() <= _FEW * len(weight) and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def product_of_few(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``rows @ weight + bias`` by oneDNN, which reads the weight as it lies and with all threads. [..., d_in] → [..., d_out]

    The usual product first copies the weight to a layout of its own, which costs more than multiplying a dozen rows, and gives one row to one thread.
    """
    return torch.nn.functional.linear(rows.detach().to_mkldnn(), weight.detach().T, None if bias is None else bias.detach()).to_dense()
