"""What a model's weights are now: whether it may run with them, and whether what was kept of an earlier run is still of them.

PyTorch changes a model in place: ``model.half()``, ``model.to("cuda")``, an optimizer's step. The model that ``load_model`` compared with Hugging
Face is then another one, and what a trace or a ``TokenTree`` holds is not of it. So each run asks for the weights first: a converted model is
refused, and whoever keeps results keeps the ``Weights`` beside them.

Seen are new memory (a conversion, ``parameter.data = …``) and what PyTorch counts (``parameter.add_(…)``, ``load_state_dict``, optimizers). An
edit through ``parameter.data.add_(…)`` is hidden from PyTorch, and from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lensplorer.errors import ModelError
from lensplorer.models import LensModel

#: Each floating parameter by name: how exact its numbers are, and where.
Placement: TypeAlias = dict[str, tuple[torch.dtype, torch.device]]

_SHOWN = 2  # parameters named in a message


class Weights:
    """The weights of a model at one moment. While they stay, ``weights_of`` gives the same object.

    Attributes:
        without_gradients: some were made inside ``torch.inference_mode()``, and PyTorch takes no gradient through them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.without_gradients = False
        self._memory = []  # references to addresses, not to what is there: while they are held, nothing else comes to lie there
        self._held = []  # where a parameter hangs, the address of its memory, and how often it was written to; -1 where PyTorch does not count
        for holder, name, parameter in _parameters(model):
            inference = parameter.is_inference()
            self._memory.append(_memory_of(parameter))
            self._held.append((holder, name, self._memory[-1].cdata, -1 if inference else parameter._version))
            self.without_gradients |= inference

    def still(self) -> bool:
        """Whether they are the model's weights now. Cost: 0.2 µs a parameter."""
        for holder, name, address, writes in self._held:
            parameter = holder.get(name)
            if parameter is None or parameter.untyped_storage()._cdata != address or (writes >= 0 and parameter._version != writes):
                return False
        return True


def weights_of(model: LensModel) -> Weights:
    """The model's weights now: the same object as last time, unless something changed them.

    Raises:
        ModelError: they were converted or moved since the model was loaded, all or in part; the message says how to have them so.
    """
    if not isinstance(model, torch.nn.Module):  # something that answers like one
        return _none
    known = _known.get(model)
    if known is None or not known.still():
        _require_as_loaded(model)
        known = _known[model] = Weights(model)
    return known


def placement(model: torch.nn.Module) -> Placement:
    """Dtype and device of each floating parameter."""
    names = {id(module._parameters): name for name, module in model.named_modules()}
    found = {}
    for holder, name, parameter in _parameters(model):
        if parameter.is_floating_point():
            found[f"{names[id(holder)]}.{name}".lstrip(".")] = (parameter.dtype, parameter.device)
    return found


def _parameters(model: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Each parameter once, and the dictionary and name under which its module has it."""
    seen = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module._parameters, name, parameter


def _memory_of(parameter: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(parameter.untyped_storage())  # type: ignore[no-untyped-call]


def _require_as_loaded(model: Any) -> None:
    """
    Raises:
        ModelError: a parameter has another dtype, or lies elsewhere, than when ``load_model`` loaded the model, or than the configuration of a
            model from elsewhere says.
    """
    now = placement(model)
    loaded: Placement | None = getattr(model, "lensplorer_placement", None)
    wanted = loaded if loaded is not None else _configured(model, now)
    both = [name for name in now if name in wanted]
    for which, option in enumerate(("dtype", "device")):
        changed = {name: now[name][which] for name in both if now[name][which] != wanted[name][which]}
        if not changed:
            continue
        name, value = next(iter(changed.items()))
        now_is, was = (f"{'on ' if which else ''}{_text(each)}" for each in (value, wanted[name][which]))
        if len(changed) < len(both) or len(set(changed.values())) > 1:
            some = ", ".join(map(repr, list(changed)[:_SHOWN])) + (f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else "")
            raise ModelError(f"Some of the model's weights are {now_is} now ({some}), and should be {was}: load the model again.")
        if loaded is None:
            raise ModelError(f"The model's weights are {now_is}, and its configuration says {was}: model.to(...) changes both at once.")
        asked = "" if _text(value) == "meta" else f", {option}={_text(value)!r}"
        before = was if which else f"in {was}"
        raise ModelError(f"The model's weights are {now_is} now, and it was loaded {before}: load_model(name{asked}) loads it so.")


def _configured(model: Any, now: Placement) -> Placement:
    """What the configuration of a model says that ``load_model`` did not load; the bridge may keep some weights in full precision."""
    cfg = model.cfg
    if not isinstance(getattr(cfg, "dtype", None), torch.dtype) or int(getattr(cfg, "n_devices", None) or 1) > 1:
        return {}
    device = torch.device(str(cfg.device))
    bridge = type(model).__name__ != "HookedTransformer"
    return {
        name: (dtype if bridge and dtype == torch.float32 else cfg.dtype, at if at.type == device.type else device)
        for name, (dtype, at) in now.items()
    }


def _text(value: Any) -> str:
    return str(value).removeprefix("torch.")


_known: WeakKeyDictionary[Any, Weights] = WeakKeyDictionary()
_none = Weights(torch.nn.Module())
