"""What an SAE says of activations: features, reconstruction, error; and its reconstruction spliced into a run.

Features always come from ``sae.encode``: the activation function, thresholds and normalisation are sae-lens' own. Reconstruction + error =
activation, by definition of the error. A skip transcoder's reconstruction includes its linear path, ``decode(f) + W_skip · x``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from lensplorer.errors import SAEError
from lensplorer.saes.info import sae_info

if TYPE_CHECKING:
    from lensplorer.running import Hook
    from lensplorer.saes.site import Site

Edit = Callable[[torch.Tensor], torch.Tensor]

# sae-lens keeps the scale of a normalised input on the SAE between encode and decode: one thread at a time.
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_mutex = threading.Lock()


def sae_lock(sae: Any) -> threading.RLock:
    """The lock of this SAE; the same for every caller."""
    with _locks_mutex:
        return _locks.setdefault(sae, threading.RLock())


def encode(sae: Any, activation: torch.Tensor) -> torch.Tensor:
    """Feature activations, dense. [..., d_in] → [..., d_sae]"""
    with torch.no_grad(), sae_lock(sae):
        return sae.encode(activation.to(device=sae.device, dtype=sae.dtype))


def encode_and_decode(sae: Any, activation: torch.Tensor, *, edit: Edit | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Features, and the reconstruction from them (after ``edit``). [..., d_in] → [..., d_sae], [..., d_out]

    Raises:
        SAEError: this SAE has features only (a cross-layer transcoder cut into layers).
    """
    if not sae_info(sae).reconstructs:
        raise SAEError(f"{sae_info(sae).name!r} is one layer of a cross-layer transcoder: it has features, and no reconstruction of its own.")
    x = activation.to(device=sae.device, dtype=sae.dtype)
    with torch.no_grad(), sae_lock(sae):
        features = sae.encode(x)
        reconstruction = sae.decode(features if edit is None else edit(features))
        if sae.cfg.reshape_activations == "hook_z":  # sae-lens gives each head back
            reconstruction = reconstruction.flatten(-2)
        skip = getattr(sae, "W_skip", None)
        if skip is not None:
            reconstruction = reconstruction + x @ skip.T
    return features, reconstruction


def splice_hooks(
    sae: Any, site: Site, *, error_term: bool = False, edit: Edit | None = None, keep: torch.Tensor | None = None
) -> tuple[tuple[str, ...], list[Hook]]:
    """The hooks that put an SAE's reconstruction in the place of what it stands for, within any run.

    Args:
        sae: from ``load_sae``.
        site: from ``check_sae``.
        error_term: add what the reconstruction misses, so that without an edit nothing changes.
        edit: a change to the features; with ``error_term`` only its effect reaches the model.
        keep: positions left as they are. [position], bool

    Returns:
        (the hooks' names, hooks for ``run_model(..., hooks=...)``).
    """
    seen: dict[str, torch.Tensor] = {}

    def see(value: torch.Tensor, hook: Any) -> torch.Tensor:
        seen["input"] = value
        return value

    def replace(value: torch.Tensor, hook: Any) -> torch.Tensor:
        source = site.input(seen.pop("input") if site.transcoder else value)
        _, reconstruction = encode_and_decode(sae, source, edit=edit)
        if error_term:
            plain = reconstruction if edit is None else encode_and_decode(sae, source)[1]
            reconstruction = reconstruction.to(value.device) + (site.target(value) - plain.to(value.device))
        replaced = site.put(value, reconstruction.to(value.device))
        if keep is None:
            return replaced
        kept = keep.to(value.device).view(1, -1, *[1] * (value.ndim - 2))
        return torch.where(kept, value, replaced)

    hooks: list[Hook] = [(site.read, see)] if site.transcoder else []
    hooks.append((site.write, replace))
    return tuple(name for name, _ in hooks), hooks


def zero_hook(site: Site, *, keep: torch.Tensor | None = None) -> Hook:
    """The hook that puts zero where an SAE's reconstruction would go: the floor of "loss recovered"."""

    def replace(value: torch.Tensor, hook: Any) -> torch.Tensor:
        replaced = site.put(value, torch.zeros_like(site.target(value)))
        if keep is None:
            return replaced
        kept = keep.to(value.device).view(1, -1, *[1] * (value.ndim - 2))
        return torch.where(kept, value, replaced)

    return site.write, replace


@dataclass(frozen=True, eq=False)
class Codes:
    """The features of a prompt, sparse: at each position those that are active, strongest (by absolute value) first.

    Attributes:
        start: where each position's features begin, and the end. [position + 1]
        feature: ids. [active]
        activation: their values, float32. [active]
        squared_error: ‖target − reconstruction‖² at each position; NaN where there is no reconstruction. [position]
    """

    start: np.ndarray
    feature: np.ndarray
    activation: np.ndarray
    squared_error: np.ndarray

    @property
    def n_positions(self) -> int:
        return len(self.start) - 1

    @property
    def nbytes(self) -> int:
        return int(self.start.nbytes + self.feature.nbytes + self.activation.nbytes + self.squared_error.nbytes)

    @property
    def l0(self) -> np.ndarray:
        """Number of active features. [position]"""
        return np.diff(self.start)

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` strongest at each position: ids, −1 beyond the active ones; activations, 0 there. both [position, k]"""
        feature = np.full((self.n_positions, k), -1, dtype=np.int64)
        activation = np.zeros((self.n_positions, k), dtype=np.float32)
        position = np.repeat(np.arange(self.n_positions), self.l0)
        rank = np.arange(len(self.feature)) - self.start[position]
        shown = rank < k
        feature[position[shown], rank[shown]] = self.feature[shown]
        activation[position[shown], rank[shown]] = self.activation[shown]
        return feature, activation

    def of(self, feature: int) -> np.ndarray:
        """One feature's activation at each position. [position]"""
        values = np.zeros(self.n_positions, dtype=np.float32)
        found = np.flatnonzero(self.feature == feature)
        values[np.searchsorted(self.start, found, side="right") - 1] = self.activation[found]
        return values


def sparse_codes(sae: Any, source: torch.Tensor, target: torch.Tensor) -> Codes:
    """The ``Codes`` of a prompt's activations. [position, d_in], [position, d_out]"""
    if sae_info(sae).reconstructs:
        dense, reconstruction = encode_and_decode(sae, source)
        squared_error = (target.to(sae.device).float() - reconstruction.float()).pow(2).sum(-1).cpu().numpy()
    else:
        dense, squared_error = encode(sae, source), np.full(len(source), np.nan, dtype=np.float32)
    where = dense.nonzero()  # sorted by position  [active, 2]
    values = dense[where[:, 0], where[:, 1]].float().cpu().numpy()
    position, feature = where.cpu().numpy().T
    order = np.lexsort((-np.abs(values), position))
    start = np.zeros(len(dense) + 1, dtype=np.int64)
    np.cumsum(np.bincount(position, minlength=len(dense)), out=start[1:])
    return Codes(start, feature[order].astype(np.int32), values[order], squared_error)
