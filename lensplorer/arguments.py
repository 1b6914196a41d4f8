"""What a public function wants of each argument, and what it says to anything else.

``@expects`` reads a function's annotations: a trace where a model is meant is told so in a sentence that says what is wanted and how to have it.
Annotations are compared by their text, since most are imported for type checkers alone; one that is not known here is not looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar

from lensplorer.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """One kind of argument.

    Attributes:
        wanted: how a sentence calls it.
        found: how a sentence calls a value of it that stands where something else is meant.
        fits: whether a value is of it.
        how: where one comes from; empty where everybody knows.
    """

    wanted: str
    found: str
    fits: Callable[[Any], bool]
    how: str = ""


def _made_by(name: str) -> Callable[[Any], bool]:
    """Whether a value is of a class of that name of this package, or of one made from it: asked without importing it."""

    def fits(value: Any) -> bool:
        return any(each.__name__ == name and each.__module__.startswith("lensplorer.") for each in type(value).__mro__)

    return fits


def _is_sae(value: Any) -> bool:
    return (hasattr(value, "encode") and hasattr(value, "cfg") and not hasattr(value, "tokenizer")) or _made_by("Dictionary")(value)


def _is_several(value: Any) -> bool:
    """Whether a value is a list or the like: a model or SAE can be gone through as well, and is not meant."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) and not hasattr(value, "cfg")


def _all(values: Iterable[Any], fits: Callable[[Any], bool]) -> bool:
    """Whether all of several values fit; what may be gone through only once is not looked into, nor an array."""
    return not isinstance(values, (list, tuple)) or all(map(fits, values))


_KINDS: dict[str, Kind] = {
    "LensModel": Kind("a model", "a model", lambda value: hasattr(value, "cfg") and hasattr(value, "tokenizer"), "load_model(name) loads one"),
    "Trace": Kind("a trace", "a trace", _made_by("Trace"), "run_trace(model, prompt) makes one"),
    "SAE": Kind("an SAE", "an SAE", _is_sae, "load_sae(release, sae_id) loads one"),
    "xr.Dataset": Kind(
        "the result of an analysis",
        "the result of an analysis",
        lambda value: hasattr(value, "data_vars") and hasattr(value, "attrs"),
        "an analysis of a trace makes one, such as token_scores(trace)",
    ),
    "Attributions": Kind(
        "attributions", "attributions", _made_by("Attributions"), "attributions(trace, matrix) makes them, and read_tokenlens(path) reads them"
    ),
    "Prompt": Kind(
        "a text, token ids or chat messages",
        "a prompt",
        lambda value: isinstance(value, str) or (_is_several(value) and _all(value, lambda each: isinstance(each, (Real, Mapping, Iterable)))),
    ),
    "Intervention": Kind(
        "an intervention",
        "an intervention",
        lambda value: callable(getattr(value, "hooks", None)) and not hasattr(value, "tokenizer"),
        "ablate_head(layer, head) makes one, for instance",
    ),
    "Analysis": Kind("an analysis", "an analysis", lambda value: isinstance(getattr(value, "reads", None), tuple)),
    "Element": Kind(
        "a figure",
        "a figure",
        lambda value: any(each.__module__.startswith(("holoviews.", "panel.", "bokeh.")) for each in type(value).__mro__),
        "draw(result) makes one",
    ),
    "Metric": Kind("a metric", "a metric", _made_by("Metric"), "logit_difference(target, versus) makes one"),
    "Reading": Kind("a reading", "a reading", _made_by("Reading"), "Reading(name, vector)"),
    "DecodingParams": Kind("decoding parameters", "decoding parameters", _made_by("DecodingParams"), "DecodingParams(...)"),
    "Constraint": Kind("a constraint", "a constraint", _made_by("Constraint"), 'Constraint("regex", text)'),
    "FeatureCache": Kind("a feature cache", "a feature cache", _made_by("FeatureCache")),
    "Positions": Kind("positions", "positions", _made_by("Positions")),
    "None": Kind("None", "None", lambda value: value is None),
    "bool": Kind("True or False", "a truth value", lambda value: type(value).__name__ in ("bool", "bool_")),
    "int": Kind("a whole number", "a number", lambda value: isinstance(value, Integral)),
    "float": Kind("a number", "a number", lambda value: isinstance(value, Real)),
    "str": Kind("a text", "a text", lambda value: isinstance(value, str)),
    "Path": Kind("a path", "a path", lambda value: isinstance(value, PathLike)),
    "slice": Kind("a slice", "a slice", lambda value: isinstance(value, slice)),
    "torch.Tensor": Kind("a tensor", "a tensor", lambda value: hasattr(value, "requires_grad") and hasattr(value, "dtype")),
    "torch.dtype": Kind("a dtype", "a dtype", lambda value: type(value).__name__ == "dtype"),
    "Callable": Kind("a function", "a function", lambda value: callable(value) and not hasattr(value, "cfg") and not isinstance(value, type)),
    "tuple": Kind("a tuple", "a tuple", lambda value: isinstance(value, tuple)),
    "Mapping": Kind("a dictionary", "a dictionary", lambda value: isinstance(value, Mapping)),
}

#: Names of types that stand for several.
_ALIASES = {
    "Reads": "str | Analysis | list[Any] | None",
    "HeadsLike": "int | Iterable[int] | None",
    "PositionsLike": "Positions | int | Iterable[int] | slice | None",
    "MetricLike": "Metric | Reading | str | int | tuple | Callable",
}


def expects(function: F) -> F:
    """Have a function, or the making of a class, refuse arguments of another kind than the annotations say.

    Raises (the function, from then on):
        ArgumentError: naming the parameter, what is wanted, how to have it, and what was given.

    Cost: a microsecond an argument.
    """
    if inspect.isclass(function):
        function.__init__ = expects(function.__init__)  # type: ignore[method-assign]
        return function
    parameters = inspect.signature(function).parameters.values()
    kinds = {each.name: _kinds_of(each.annotation) for each in parameters}
    positional = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), None)

    @wraps(function)
    def asked(*arguments: Any, **options: Any) -> Any:
        for name, value in zip(positional, arguments):
            _check(function, name, kinds[name], value)
        for value in arguments[len(positional) :] if rest is not None else ():
            _check(function, str(rest), kinds[str(rest)], value)
        for name, value in options.items():
            _check(function, name, kinds.get(name), value)
        return function(*arguments, **options)

    return asked  # type: ignore[return-value]


def expected(function: str, parameter: str, annotation: str, value: Any) -> None:
    """The same for one argument, where a function has its own way to it.

    Raises:
        ArgumentError: as ``expects``.
    """
    _check(function, parameter, _kinds_of(annotation), value)


def _check(function: Any, name: str, kinds: Sequence[Kind] | None, value: Any) -> None:
    if kinds is None or any(kind.fits(value) for kind in kinds):
        return
    called = function if isinstance(function, str) else function.__qualname__.removesuffix(".__init__")
    wanted = _either([kind.wanted for kind in kinds if kind.wanted != "None"])
    how = "; ".join(dict.fromkeys(kind.how for kind in kinds if kind.how))
    raise ArgumentError(f"{called} wants {wanted} as {name}{f' ({how})' if how else ''}, and was given {describe(value)}.")


def _either(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def describe(value: Any) -> str:
    """What something is, in a few words.

    >>> describe("Once upon a time"), describe([1, 2]), describe(None)
    ("the text 'Once upon a time'", 'a list of 2 (the first a number)', 'None')
    """
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:39] + '…'!r}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}" + (f" (the first {describe(value[0])})" if value else "")
    kind = next((kind for name, kind in _KINDS.items() if name not in ("Prompt", "Callable", "Mapping") and kind.fits(value)), None)
    return kind.found if kind is not None else f"a {type(value).__name__}"


@cache
def _kinds_of(annotation: Any) -> tuple[Kind, ...] | None:
    """The kinds that an annotation stands for; None where one of them is not known here."""
    if not isinstance(annotation, str):
        return None
    found: list[Kind] = []
    for part in _split(_ALIASES.get(annotation, annotation)):
        kinds = _kinds_of(part) if part in _ALIASES else _one(part)
        if kinds is None:
            return None
        found += kinds
    return tuple(found)


def _one(part: str) -> tuple[Kind, ...] | None:
    outer, _, inner = part.removesuffix("]").partition("[")
    if outer in ("Sequence", "Iterable", "list") and inner:
        return (_several(_kinds_of(inner)),)
    return (_KINDS[outer],) if outer in _KINDS else None


def _several(kinds: tuple[Kind, ...] | None) -> Kind:
    """A list or the like of values of some kinds."""

    def fits(value: Any) -> bool:
        return _is_several(value) and (kinds is None or _all(value, lambda each: any(kind.fits(each) for kind in kinds)))

    of = "" if kinds is None else f" of {_either([_plural(kind) for kind in kinds])}"
    how = "; ".join(kind.how for kind in kinds or () if kind.how)
    return Kind(f"a list{of}", f"a list{of}", fits, how)


def _plural(kind: Kind) -> str:
    return {"an SAE": "SAEs", "the result of an analysis": "results of analyses"}.get(kind.wanted, kind.wanted.removeprefix("a ") + "s")


def _split(annotation: str) -> list[str]:
    """The parts of a union, brackets left whole.

    >>> _split("Sequence[str | int] | str | None")
    ['Sequence[str | int]', 'str', 'None']
    """
    parts, depth = [""], 0
    for character in annotation:
        depth += (character == "[") - (character == "]")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
