"""The body of each analysis' request, made from the analysis' own signature: its options, with the runs it is a function of in front.

An option's type is looked up by its name, which means the same in every analysis; its default is the function's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from lensplorer.analyses.attribution import attribute
from lensplorer.server.schemas import Body, Count, Params, Seed, Text, TokenId

Integer = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Name = Annotated[str, Field(max_length=200)]
Token = TokenId | Annotated[str, Field(max_length=1000)]
Samples = Annotated[int, Field(ge=1, le=4096)]


class Message(Body):
    """One message of a chat."""

    role: Name
    content: Text


class RunBody(Body):
    """One run of the model."""

    prompt: Text | list[TokenId] | list[Message] = Field(description="Text, token ids, or chat messages, which go through the model's template.")
    prepend_bos: bool | None = Field(None, description="null: the model's default for text, never for ids and chat.")
    interventions: list[dict[str, Any]] = Field([], max_length=32, description="As lensplorer.interventions.saving.to_dict writes them.")


class Interventions(Body):
    """Of an analysis that runs prompts of its own."""

    interventions: list[dict[str, Any]] = Field([], max_length=32)


class SAEBody(Body):
    """An SAE or transcoder by name."""

    release: Name
    sae_id: Name


class MetricBody(Body):
    """What a patching experiment measures."""

    target: Token
    versus: Token | None = None
    log_prob: bool = False
    position: Integer = -1


class ConstraintText(Body):
    """What a completion must match."""

    kind: Name = Field(description='"multiple_choice", "regex", "grammar" (Lark) or "json_schema".')
    text: Annotated[str, Field(max_length=20_000)]


#: option → its type. One whose default is None may also be null.
TYPES: dict[str, Any] = {
    **dict.fromkeys(("position", "layer", "head", "start", "query", "source"), Integer),
    **dict.fromkeys(("k", "top_k", "top", "top_heads"), Count),
    **dict.fromkeys(("target", "versus", "chosen", "a", "b"), Token),
    **dict.fromkeys(("method", "rule", "objective", "baseline", "lens", "unit", "contribution", "hook", "align_by", "search"), Name),
    **dict.fromkeys(("value_weighted", "exclude_first", "error_term", "beyond_context", "labels"), bool),
    **dict.fromkeys(("max_steps", "n_samples", "length"), Samples),
    "gradients": bool | Literal["linear"],
    "temperature": Annotated[float, Field(gt=0)],
    "max_seconds": Annotated[float, Field(gt=0, le=3600)],
    "tolerance": Annotated[float, Field(gt=0)],
    "threshold": float,
    "seed": Seed,
    "batch": Annotated[int, Field(ge=1, le=64)],
    "n_clusters": Annotated[int, Field(ge=1, le=1000)],
    "n_random": Annotated[int, Field(ge=0, le=32)],
    "n_prompt": Annotated[int, Field(ge=0, lt=2**31)],
    "tokens": Annotated[list[Token], Field(max_length=64)] | Name,
    "features": Annotated[list[Integer], Field(max_length=4096)],
    "exclude": Annotated[list[Integer], Field(max_length=4096)],
    "params": Params,
    "constraint": ConstraintText,
    "metric": MetricBody,
    "sae": SAEBody,
    "saes": Annotated[list[SAEBody], Field(max_length=16)],
}
#: parameters that make no sense in a request
LEFT_OUT = ("progress", "batch_size", "cache", "interventions")


def request_model(
    name: str, function: Callable[..., Any], *, base: type[Body] = Body, runs: Mapping[str, Any] | None = None, without: tuple[str, ...] = ()
) -> type[Body]:
    """The body of a request for an analysis.

    Args:
        name: of the body in the documentation.
        function: the analysis.
        base: fields in front of its options.
        runs: parameters of the analysis that are not options → their type.
        without: parameters that the caller does not give.

    Raises:
        KeyError: an option has no type here.
    """
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in (*LEFT_OUT, *without):
            continue
        kind = (runs or {}).get(parameter.name) or TYPES[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            fields[parameter.name] = (kind, ...)
        else:
            fields[parameter.name] = (kind | None if parameter.default is None else kind, parameter.default)
    return create_model(name, __base__=base, **fields)


#: The attribution that another analysis is about: the options of ``attribute``.
AttributionOptions = request_model("AttributionOptions", attribute, without=("trace",))
TYPES["attribution"] = AttributionOptions
TYPES["attributions"] = Annotated[list[AttributionOptions], Field(max_length=12)]  # type: ignore[valid-type]
