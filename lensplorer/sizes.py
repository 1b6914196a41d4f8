"""What a run will take of memory, known before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lensplorer.errors import TraceError
from lensplorer.linear import LINEAR
from lensplorer.memory import free_bytes, readable
from lensplorer.models import LensModel
from lensplorer.segments import is_attention

#: Tokens of one run of a batch on a CPU. More at a time gains nothing there, and a run is what everybody else has to wait for.
_CPU_BATCH = 256
_UNCHECKED = 256  # tokens: a run over fewer is always made
_LIVE_SCORES = 5  # copies of one block's attention scores while it runs: raw, scaled, masked, softmax, and one in the making
_LIVE_ROWS = 8  # and of its widest activation
#: What a graph keeps of each block: copies of the scores (the linear model has the pattern alone), rows of d_model, and rows of the MLP.
_GRAPHS: dict[bool | str, tuple[int, int, int]] = {False: (0, 0, 0), True: (4, 24, 4), LINEAR: (1, 8, 4)}


def read_bytes(model: LensModel, name: str, n: int) -> int:
    """Bytes of one recorded activation of ``n`` positions."""
    cfg = model.cfg
    size = int(cfg.dtype.itemsize)
    if is_attention(name):
        return int(cfg.n_heads) * n * n * size
    return n * _width(cfg, name) * size


def _width(cfg: Any, name: str) -> int:
    """Numbers per position; where the name does not tell, those of the residual stream."""
    if name.endswith(("hook_scale", "hook_cos", "hook_sin")):
        return 1
    if ".mlp." in name and name.endswith(("hook_pre", "hook_pre_linear", "hook_post", "hook_in", "hook_out")):
        return int(getattr(cfg, "d_mlp", 0) or cfg.d_model)
    if name.endswith(("hook_k", "hook_v")):
        return int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * int(cfg.d_head)
    if name.endswith(("hook_q", "hook_z")):
        return int(cfg.n_heads) * int(cfg.d_head)
    if name.endswith("hook_result"):
        return int(cfg.n_heads) * int(cfg.d_model)
    return int(cfg.d_model)


def run_bytes(model: LensModel, batch: int, n: int, reads: Iterable[str], *, n_past: int = 0, gradients: bool | str = False) -> int:
    """About what one run takes at its peak, beside the model.

    Args:
        batch, n: rows, and tokens of each.
        reads: the activations recorded.
        n_past: positions in a key-value cache before them.
        gradients: whether a graph is kept: False, True, or ``"linear"``.
    """
    cfg = model.cfg
    size, d_model, n_layers = int(cfg.dtype.itemsize), int(cfg.d_model), int(cfg.n_layers)
    d_mlp = int(getattr(cfg, "d_mlp", 0) or d_model)
    scores = int(cfg.n_heads) * n * (n + n_past) * size
    rows = n * max(d_mlp, d_model) * size
    kept = sum(read_bytes(model, name, n) if not is_attention(name) else scores for name in reads)
    of_scores, of_stream, of_mlp = _GRAPHS[gradients]
    kept += n_layers * (of_scores * scores + n * (of_stream * d_model + of_mlp * d_mlp) * size)
    return batch * (kept + _LIVE_SCORES * scores + _LIVE_ROWS * rows + n * int(cfg.d_vocab) * size * (3 if gradients else 1))


def batch_rows(model: LensModel, n: int, row_bytes: int, max_bytes: int) -> int:
    """How many rows of ``n`` tokens are run together, where each takes ``row_bytes``: what fits ``max_bytes``, on a CPU few; at least one."""
    rows = max_bytes // row_bytes
    return max(1, min(rows, _CPU_BATCH // n) if str(model.cfg.device).startswith("cpu") else rows)


def require_memory(model: LensModel, batch: int, n: int, reads: Iterable[str], *, n_past: int = 0, gradients: bool | str = False) -> None:
    """Refuse a run that would take more memory than is free. Arguments as ``run_bytes``.

    Raises:
        TraceError: saying what it would take, what is free, and what to do.
    """
    if batch * n <= _UNCHECKED:
        return
    reads = list(reads)
    needed = run_bytes(model, batch, n, reads, n_past=n_past, gradients=gradients)
    free = free_bytes(model.cfg.device)
    if needed <= free:
        return
    less = run_bytes(model, batch, n, [name for name in reads if not is_attention(name)], n_past=n_past, gradients=gradients)
    if gradients:
        advice = "The graph of a shorter text fits, and methods without gradients take less."
    elif less <= free:
        advice = f"Without the attention patterns it takes {readable(less)}: name what to read, reads=[...]."
    else:
        advice = "Shorten the text; a Session runs it in pieces, and makes again what is looked at."
    what = f"{batch} × {n:,}" if batch > 1 else f"{n:,}"
    graph = " with gradients" if gradients else ""
    raise TraceError(f"One run over {what} tokens{graph} takes about {readable(needed)} of memory, and {readable(free)} are free. {advice}")
