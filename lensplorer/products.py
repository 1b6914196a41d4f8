"""The product of a few rows with a large weight, which is most of a one-token step."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_FEW = 64  # up to so many rows, the product is bound by reading the weight
_FEWEST = 16  # up to so many, the weight is best taken as the rows, and these as the columns
_LARGE = 100_000  # elements of a weight from which on two threads gain more than they cost


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``torch.nn.functional.linear``, with ``product_of_few`` where it is the faster. [..., d_in], [d_out, d_in] → [..., d_out]"""
    if _is_few(rows, weight):
        return product_of_few(rows, weight.T, bias)
    return torch.nn.functional.linear(rows, weight, bias)


def is_product_of_few(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether ``product_of_few`` is at hand, and the faster: few float32 rows on a CPU, and a large weight without gradients.

    The weight is stored column by column, or for a single row either way.

    Args:
        rows: [..., d_in]
        weight: [d_in, d_out]
    """
    return _is_few(rows, weight.T)


def product_of_few(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``rows @ weight + bias`` by oneDNN, which reads the weight as it lies and with all threads. [..., d_in] → [..., d_out]

    The usual product first copies the weight to a layout of its own, which costs more than multiplying a dozen rows, and gives one row to one thread.
    The result may be stored column by column, and has a gradient where rows or bias have one: values do not depend on whether a graph is kept.
    """
    if torch.is_grad_enabled() and (rows.requires_grad or (bias is not None and bias.requires_grad)):
        return _Few.apply(rows, weight.T, bias)  # type: ignore[no-untyped-call]
    return _few(rows, weight.T, bias)


class _Few(torch.autograd.Function):
    """``_few`` with its gradient, which oneDNN's operator does not have."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _few(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (weight,) = ctx.saved_tensors
        of_rows = gradient @ weight if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return of_rows, None, of_bias


def _is_few(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    if weight.numel() < _LARGE or not 0 < rows.numel() <= _FEW * weight.shape[1]:
        return False
    fits = rows.dtype == weight.dtype == torch.float32 and rows.is_cpu
    lies = weight.is_contiguous() or (rows.numel() == weight.shape[1] and weight.T.is_contiguous())
    learns = torch.is_grad_enabled() and weight.requires_grad
    return fits and lies and not learns and _has_onednn()


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def _few(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    flat = rows.reshape(-1, rows.shape[-1])
    if 1 < flat.shape[0] <= _FEWEST:
        found = _linear(weight, flat, None).T
        found = found if bias is None else found + bias
    else:
        found = _linear(flat, weight, bias)
    return found.view(*rows.shape[:-1], weight.shape[0])


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias``, the operator to which torch compiles a linear layer. [row, d_in], [d_out, d_in] → [row, d_out]"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
