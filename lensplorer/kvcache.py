"""Key-value caches that grow in place, for both backends.

Both vendors' caches join past and new keys into a new tensor at every layer and step, which costs as much as the step itself after a few
hundred tokens. Here a layer's keys and values live in a buffer with room to grow: an append writes the new rows and returns views.

The buffer is [batch, head, position, d_head], which is what both backends' attention products read without copying. It belongs to one
``TokenTree`` and is overwritten when the tree turns to another branch, so nothing outside a run may keep a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lensplorer.models import LensModel, model_info

_ROOM = 32  # positions allocated ahead, at least


class GrowingLayer:
    """Keys and values of one layer, for a batch of one.

    Attributes:
        length: positions held.
        latest: the rows added last, as they were given: the model's own tensors. Two of [new position, head, d_head]
    """

    def __init__(self) -> None:
        self.length = 0
        self.latest: tuple[torch.Tensor, torch.Tensor] | None = None
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows and return all. keys, values: [1, head, new position, d_head] → [1, head, position, d_head]"""
        stop = self.length + keys.shape[2]
        self._keys, self._values = _with_room(self._keys, keys, self.length, stop), _with_room(self._values, values, self.length, stop)
        self._keys[:, :, self.length : stop] = keys
        self._values[:, :, self.length : stop] = values
        self.length = stop
        self.latest = keys[0].transpose(0, 1), values[0].transpose(0, 1)
        return self._keys[:, :, :stop], self._values[:, :, :stop]

    def take_latest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``latest``, which is then let go."""
        if self.latest is None:
            raise ValueError("The model ran without using its key-value cache.")
        latest, self.latest = self.latest, None
        return latest

    def keys(self) -> torch.Tensor | None:
        """All keys, as a view. [1, head, position, d_head]"""
        return self._keys[:, :, : self.length] if self._keys is not None else None

    @property
    def n_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self._keys, self._values) if buffer is not None)


def _with_room(buffer: torch.Tensor | None, like: torch.Tensor, length: int, needed: int) -> torch.Tensor:
    """``buffer`` with at least ``needed`` positions; its first ``length`` kept."""
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    batch, heads, _, width = like.shape
    with torch.inference_mode(False):  # it is written to outside of a run too
        grown = like.new_empty(batch, heads, needed + max(_ROOM, length // 8), width)
    if buffer is not None:
        grown[:, :, :length] = buffer[:, :, :length]
    return grown


class HookedEntry:
    """One layer as HookedTransformer wants it: tensors of [batch, position, head, d_head]."""

    def __init__(self, layer: GrowingLayer, shape: tuple[int, int]) -> None:
        self.layer = layer
        self._empty = torch.empty(1, 0, *shape)

    @property
    def past_keys(self) -> torch.Tensor:
        """HookedTransformer reads the shape alone: the length is the offset of the new positions."""
        keys = self.layer.keys()
        return keys.transpose(1, 2) if keys is not None else self._empty

    def append(self, new_keys: torch.Tensor, new_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.layer.append(new_keys.transpose(1, 2), new_values.transpose(1, 2))
        return keys.transpose(1, 2), values.transpose(1, 2)


class HookedCache:
    """What HookedTransformer asks of a ``TransformerLensKeyValueCache``."""

    def __init__(self, layers: Sequence[GrowingLayer], cfg: Any) -> None:
        heads = cfg.n_key_value_heads if cfg.n_key_value_heads is not None else cfg.n_heads
        self.layers = layers
        self.entries = [HookedEntry(layer, (int(heads), int(cfg.d_head))) for layer in layers]

    def __getitem__(self, index: int) -> HookedEntry:
        return self.entries[index]

    def append_attention_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Nothing in a tree is padding."""
        return attention_mask.new_ones(1, self.layers[0].length + attention_mask.shape[1])


def _bridge_cache(layers: Sequence[GrowingLayer]) -> Any:
    """A transformers ``Cache`` over the same layers."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        """Keeps every position of every layer: the model masks a sliding window itself."""

        def __init__(self, layer: GrowingLayer) -> None:
            super().__init__()
            self.layer = layer

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            return self.layer.append(key_states, value_states)

        def get_seq_length(self) -> int:
            return self.layer.length

    return Cache(layers=[Layer(layer) for layer in layers])


class WorkingCache:
    """The key-value cache of the path that a tree is on.

    Attributes:
        layers: one per block.
        past: the same, as the model's backend takes it.
    """

    def __init__(self, model: LensModel) -> None:
        self.layers = [GrowingLayer() for _ in range(int(model.cfg.n_layers))]
        self.past: Any = HookedCache(self.layers, model.cfg) if model_info(model).backend == "hooked" else _bridge_cache(self.layers)

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on. O(1): the next append writes over them."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    @property
    def n_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers)
