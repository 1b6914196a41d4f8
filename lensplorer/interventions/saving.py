"""Interventions as JSON and back. Tensors are not written: a patch is saved as what was fed and under which changes, and runs again;
an SAE as its fingerprint, and must be given again. A direction is d_model numbers, and is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from lensplorer.errors import AnalysisError, SessionError, did_you_mean
from lensplorer.interventions.edits import Ablation, KnockOut, Patch, Scale
from lensplorer.interventions.features import Dictionary, FeatureEdit
from lensplorer.interventions.steering import Contrast, Direction, Steer
from lensplorer.interventions.values import Positions, Reference

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Ablation, Patch, Scale, Steer, KnockOut, FeatureEdit, Direction, Contrast, Positions, Reference, Dictionary)
}
INTERVENTIONS = (Ablation, Patch, Scale, Steer, KnockOut, FeatureEdit)
_DEEPEST = 100  # lists and tables within each other: a run under interventions that borrow from a run … takes four of them each time


def to_dict(intervention: Any) -> dict[str, Any]:
    """The intervention as plain data, for JSON.

    >>> from lensplorer.interventions import ablate_mlp
    >>> from_dict(to_dict(ablate_mlp(0))) == ablate_mlp(0)
    True

    Raises:
        SessionError: it is not one of ``lensplorer.interventions``, borrows from a run under one that is not, or from runs that borrow from runs
            more than 25 times over.
    """
    if not isinstance(intervention, INTERVENTIONS):
        raise SessionError(f"{intervention!r} cannot be saved: only the interventions of lensplorer.interventions can.")
    plain: dict[str, Any] = _plain(intervention, _DEEPEST)
    return plain


def _plain(value: Any, room: int) -> Any:
    if room < 0:
        raise SessionError("An intervention cannot be saved: it borrows from runs that borrow from runs, too many times over.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_plain(item, room - 1) for item in value]
    if type(value).__name__ in _KINDS and is_dataclass(value):
        return {"kind": type(value).__name__, **{f.name: _plain(getattr(value, f.name), room - 1) for f in fields(value) if f.compare}}
    raise SessionError(f"{value!r} cannot be saved: only the interventions of lensplorer.interventions can.")


def from_dict(data: Mapping[str, Any], *, saes: Iterable[Any] = ()) -> Any:
    """The intervention that ``to_dict`` wrote.

    Args:
        data: plain data.
        saes: the SAEs at hand, for features.

    Raises:
        SessionError: the data are damaged (a field is missing, unknown, or of the wrong type or range), or the SAE of a feature is not among those
            given.
    """
    try:
        found = _built(data, tuple(Dictionary.of(sae) for sae in saes), _DEEPEST)
    except (KeyError, TypeError, OverflowError) as error:
        raise SessionError(f"A saved intervention is damaged: {type(error).__name__} {error}.") from error
    except AnalysisError as error:
        raise SessionError(f"A saved intervention is damaged: {error}") from error
    if not isinstance(found, INTERVENTIONS):
        raise SessionError(f"A saved intervention is of kind {data.get('kind')!r}: expected one of {', '.join(k.__name__ for k in INTERVENTIONS)}.")
    return found


def _built(value: Any, dictionaries: tuple[Dictionary, ...], room: int) -> Any:
    if room < 0:
        raise SessionError("A saved intervention is damaged: it is nested too deeply.")
    if isinstance(value, list):
        return tuple(_built(item, dictionaries, room - 1) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = str(value["kind"])
    if kind not in _KINDS:
        raise SessionError(f"Unknown intervention {kind!r}.{did_you_mean(kind, _KINDS)}")
    if kind == "Dictionary":
        for dictionary in dictionaries:
            if (dictionary.fingerprint, dictionary.hook_in, dictionary.d_sae) == (value["fingerprint"], value["hook_in"], value["d_sae"]):
                return dictionary
        raise SessionError(
            f"An intervention changes features of an SAE of {value['model']!r} at {value['hook_in']!r} with {value['d_sae']} features:"
            " load that SAE and give it as saes=[...]."
        )
    given = {name: _built(item, dictionaries, room - 1) for name, item in value.items() if name != "kind"}
    for name, item in given.items():
        if name in _types(kind) and not _is(item, _types(kind)[name]):  # one that is unknown is refused below
            raise SessionError(f"A saved intervention is damaged: {name} of {kind} is of the wrong type.")
    return _KINDS[kind](**given)


@lru_cache
def _types(kind: str) -> dict[str, Any]:
    """The types of a kind's fields."""
    return get_type_hints(_KINDS[kind])


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field."""
    if isinstance(kind, UnionType):
        return any(_is(value, each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)
