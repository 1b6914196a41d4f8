"""Key-value caches that grow in place, for both backends.

Both vendors' caches join past and new keys into a new tensor at every layer and step, which costs as much as the step itself after a few
hundred tokens. Here a layer's keys and values live in a buffer with room to grow: an append writes the new rows and returns views.

The buffer is [batch, head, position, d_head], which is what both backends' attention products read without copying; keys lie in it as rotated,
but where TransformerLens' own attention steps (``layout._steps``) and rotates all of them each time. It belongs to one ``TokenTree``, which
holds keys and values once: those of the path in use here, those of other branches parked beside their tokens. It is overwritten when the tree
turns to another branch, so nothing outside a run may keep a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from lensplorer.models import LensModel, model_info

_ROOM = 32  # positions allocated ahead, at least

#: Keys and values of some positions, one pair per block. Each [1, head, position, d_head]
KeysValues: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"


class GrowingLayer:
    """Keys and values of one layer, for a batch of one.

    Attributes:
        length: positions held.
    """

    def __init__(self) -> None:
        self.length = 0
        self.reserved = 0  # positions that the next allocation has room for
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows and return all. keys, values: [1, head, new position, d_head] → [1, head, position, d_head]"""
        stop = self.length + keys.shape[2]
        room = max(stop, self.reserved)
        self._keys, self._values = _with_room(self._keys, keys, self.length, stop, room), _with_room(self._values, values, self.length, stop, room)
        self._keys[:, :, self.length : stop] = keys
        self._values[:, :, self.length : stop] = values
        self.length = stop
        return self.rows(0, stop)

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some positions, as views. Two of [1, head, position, d_head]"""
        if self._keys is None or self._values is None:
            raise ValueError("This layer holds no keys and values.")
        return self._keys[:, :, start:stop], self._values[:, :, start:stop]

    def keys(self) -> torch.Tensor | None:
        """All keys, as a view. [1, head, position, d_head]"""
        return self._keys[:, :, : self.length] if self._keys is not None else None

    @property
    def n_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self._keys, self._values) if buffer is not None)


class FrozenLayer:
    """A layer as it was at ``length`` positions: a run over positions that it holds gets what is held, and changes nothing."""

    def __init__(self, layer: GrowingLayer, length: int) -> None:
        self.layer, self.length = layer, length

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is held up to the end of these rows. keys, values: [1, head, new position, d_head] → [1, head, position, d_head]"""
        return self.layer.rows(0, self.length + keys.shape[2])

    def keys(self) -> torch.Tensor | None:
        keys = self.layer.keys()
        return None if keys is None else keys[:, :, : self.length]


def _with_room(buffer: torch.Tensor | None, like: torch.Tensor, length: int, needed: int, room: int) -> torch.Tensor:
    """``buffer`` with at least ``needed`` positions; its first ``length`` kept. Where it must grow, with ``room`` and some more."""
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    batch, heads, _, width = like.shape
    with torch.inference_mode(False):  # it is written to outside of a run too
        grown = like.new_empty(batch, heads, room + max(_ROOM, room // 16), width)
    if buffer is not None:
        grown[:, :, :length] = buffer[:, :, :length]
    return grown


class HookedEntry:
    """One layer as HookedTransformer wants it: tensors of [batch, position, head, d_head]."""

    def __init__(self, layer: GrowingLayer | FrozenLayer, shape: tuple[int, int]) -> None:
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

    def __init__(self, layers: Sequence[GrowingLayer | FrozenLayer], cfg: Any) -> None:
        heads = cfg.n_key_value_heads if cfg.n_key_value_heads is not None else cfg.n_heads
        self.layers = layers
        self.entries = [HookedEntry(layer, (int(heads), int(cfg.d_head))) for layer in layers]

    def __getitem__(self, index: int) -> HookedEntry:
        return self.entries[index]

    def append_attention_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Nothing in a tree is padding."""
        return attention_mask.new_ones(1, self.layers[0].length + attention_mask.shape[1])


def _bridge_cache(layers: Sequence[GrowingLayer | FrozenLayer]) -> Any:
    """A transformers ``Cache`` over the same layers."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        """Keeps every position of every layer: the model masks a sliding window itself."""

        def __init__(self, layer: GrowingLayer | FrozenLayer) -> None:
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
        self._model = model
        self.layers = [GrowingLayer() for _ in range(int(model.cfg.n_layers))]
        self.past = self._as_past(self.layers)

    def _as_past(self, layers: Sequence[GrowingLayer | FrozenLayer]) -> Any:
        return HookedCache(layers, self._model.cfg) if model_info(self._model).backend == "hooked" else _bridge_cache(layers)

    def frozen(self, length: int) -> Any:
        """The cache at its first ``length`` positions, for a run again over positions that follow and that it holds."""
        return self._as_past([FrozenLayer(layer, length) for layer in self.layers])

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return min(layer.length for layer in self.layers)

    def reserve(self, length: int) -> None:
        """Let the next append make room for so many positions at once."""
        for layer in self.layers:
            layer.reserved = length

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on. O(1): the next append writes over them."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def take(self, start: int, stop: int) -> KeysValues:
        """A copy of some positions."""
        return [(keys.clone(), values.clone()) for keys, values in (layer.rows(start, stop) for layer in self.layers)]

    def put(self, values: KeysValues, start: int, stop: int) -> None:
        """Append rows ``start`` to ``stop - 1`` of what was taken."""
        for layer, (keys, own) in zip(self.layers, values):
            layer.append(keys[:, :, start:stop], own[:, :, start:stop])

    @property
    def n_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers)


def keys_values_bytes(model: LensModel) -> int:
    """Bytes of the keys and values of one position, before anything ran."""
    cfg = model.cfg
    heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return 2 * int(cfg.n_layers) * int(heads) * int(cfg.d_head) * int(cfg.dtype.itemsize)
