"""What a batch runs: analyses with their options, and everything else that its rows depend on.

An option is plain data, or stands for something of each prompt: ``{column = "answer"}`` is a column of the input, ``{predicted = true}`` the token
that the model finds likeliest there. An SAE is the table of ``load_sae``'s arguments.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from lensplorer.errors import ConfigError, did_you_mean

#: Analyses of one trace that want something which is no plain data.
_NOT_IN_BATCH = ("faithfulness_curves", "attribution_agreement")
#: Arguments that are no plain data.
_NOT_PLAIN = ("cache", "progress", "constraint")
_NAME = "a letter, then letters, digits, _ and -"
#: Folders beside those of the analyses.
RESERVED = ("prompts", "runs", "parts", "tokenlens", "manifest")


@dataclass(frozen=True)
class Request:
    """An analysis with its options.

    Attributes:
        name: of the analysis.
        label: of its rows; the name, unless the same analysis is asked for twice.
        options: see the module.
    """

    name: str
    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that the rows of a batch depend on, but for the input and the model's weights.

    Attributes:
        requests: the analyses.
        model, dtype, backend, processing, revision: as ``load_model``.
        column: of the prompt; None: ``prompt`` or ``text``.
        id_column: a column that names each prompt.
        completion_column: a column with the text that counts as generated.
        max_new_tokens: how many tokens to generate after each prompt, greedily, until the model ends the text.
        split: of a data set.
        prepend_bos, truncate: as ``run_trace``.
        part_size: prompts per part: what is written at once, and lost at most by a kill.
        batch_tokens: tokens per forward pass, padding included; None: by the memory they take.
        tokenlens: write a TokenLens file per prompt and ``attribution_matrix``.
    """

    requests: tuple[Request, ...]
    model: str = "storyworld"
    dtype: str = "float32"
    backend: str = "auto"
    processing: str = "default"
    revision: str | None = None
    column: str | None = None
    id_column: str | None = None
    completion_column: str | None = None
    max_new_tokens: int = 0
    split: str | None = None
    prepend_bos: bool | None = None
    truncate: bool = False
    part_size: int = 256
    batch_tokens: int | None = None
    tokenlens: bool = False

    @property
    def generates(self) -> bool:
        return self.max_new_tokens > 0 or self.completion_column is not None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Plan:
        return Plan(**{**content, "requests": tuple(Request(**request) for request in content["requests"])})


_OPTIONS = tuple(item.name for item in fields(Plan) if item.name != "requests")
_KINDS: dict[str, Any] = {item.name: item.type for item in fields(Plan)}


@cache
def analyses() -> Mapping[str, Callable[..., Any]]:
    """The analyses that a batch can run: those of one trace, with plain options."""
    import lensplorer

    for module in lensplorer._PUBLIC:
        if module.startswith(("lensplorer.analyses.", "lensplorer.sampling.distribution")):
            import_module(module)
    from lensplorer.analyses.base import REGISTRY

    return {name: function for name, function in REGISTRY.items() if _first(function) == "trace" and name not in _NOT_IN_BATCH}


def _first(function: Callable[..., Any]) -> str:
    return next(iter(inspect.signature(function).parameters))


def load_plan_file(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ``[batch]`` table and the ``[[analysis]]`` tables of a TOML file.

    Raises:
        ConfigError: it cannot be read or parsed, or has another section or key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {str(path)!r} is not valid TOML: {error}.") from error
    for section in content:
        if section not in ("batch", "analysis"):
            raise ConfigError(f"{path}: unknown section {section!r}.{did_you_mean(section, ('batch', 'analysis'))}")
    batch, tables = content.get("batch", {}), content.get("analysis", [])
    if not isinstance(batch, dict) or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: expected one [batch] table, and each analysis as [[analysis]], in double brackets.")
    for key in batch:
        if key not in _OPTIONS:
            raise ConfigError(f"{path}: unknown key {key!r} in [batch].{did_you_mean(key, _OPTIONS)}")
    return batch, tables


def parse_setting(text: str) -> tuple[str, str, Any]:
    """``LABEL.OPTION=VALUE`` → label, option and value: TOML, else ``@COLUMN`` or ``@predicted``, else the text itself.

    >>> parse_setting("logit_lens.top_k=3")
    ('logit_lens', 'top_k', 3)
    >>> parse_setting("attribute.target= Paris"), parse_setting("attribute.target=@answer")
    (('attribute', 'target', ' Paris'), ('attribute', 'target', {'column': 'answer'}))

    Raises:
        ConfigError: it has another form.
    """
    name, equals, value = text.partition("=")
    label, dot, option = name.strip().partition(".")
    if not (equals and dot and label and option):
        raise ConfigError(f"--set {text!r}: expected ANALYSIS.OPTION=VALUE, e.g. logit_lens.top_k=3.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"] if value.strip() and "\n" not in value else value
    except tomllib.TOMLDecodeError:
        if value.startswith("@") and len(value) > 1:
            parsed = {"predicted": True} if value == "@predicted" else {"column": value[1:]}
        else:
            parsed = value
    return label, option, parsed


def make_plan(tables: Iterable[str | Mapping[str, Any]], options: Mapping[str, Any], settings: Sequence[tuple[str, str, Any]] = ()) -> Plan:
    """The checked plan of analyses, by name or as tables {name, label, option: value}, and the other options of ``Plan``.

    Raises:
        ConfigError: an unknown analysis, option or column reference; a missing option; a value out of range.
    """
    requests = [_request(table) for table in tables]
    if options.get("tokenlens") and not any(request.name == "attribution_matrix" for request in requests):
        requests.append(Request("attribution_matrix", "attribution_matrix", {}))
    for label, option, value in settings:
        at = next((i for i, request in enumerate(requests) if request.label == label), None)
        if at is None:
            raise ConfigError(f"--set {label}.{option}: no analysis {label!r} is asked for.{did_you_mean(label, [r.label for r in requests])}")
        requests[at] = Request(requests[at].name, label, {**requests[at].options, option: value})
    for key, value in options.items():
        _check_option(key, value)
    plan = Plan(tuple(requests), **options)
    if not requests:
        raise ConfigError(f"No analysis is asked for: --analysis NAME, one or several of {', '.join(sorted(analyses()))}.")
    labels = [request.label for request in requests]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"Two analyses have the label {label!r}: give one of them another, in a TOML: label = {label + '_2'!r}.")
        if label in RESERVED or not label[:1].isalpha() or not label.replace("_", "a").replace("-", "a").isalnum() or not label.isascii():
            raise ConfigError(f"{label!r} cannot be a label: expected {_NAME}, and none of {', '.join(RESERVED)}.")
    for request in requests:
        _check_request(request, plan)
    return plan


def _check_option(key: str, value: Any) -> None:
    if key not in _OPTIONS:
        raise ConfigError(f"Unknown option {key!r}.{did_you_mean(key, _OPTIONS)}")
    kind = _KINDS[key]
    wanted = {"str": str, "int": int, "bool": bool}[kind.removesuffix(" | None")]
    if value is None and kind.endswith("None"):
        return
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{key} must be {wanted.__name__}, got {value!r}.")
    least = {"part_size": 1, "batch_tokens": 1, "max_new_tokens": 0}.get(key)
    if least is not None and isinstance(value, int) and value < least:
        raise ConfigError(f"{key} must be at least {least}, got {value}.")


def _request(table: str | Mapping[str, Any]) -> Request:
    content: dict[str, Any] = {"name": table} if isinstance(table, str) else dict(table)
    name = content.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"An analysis needs a name: {dict(content)!r} has none.")
    if name not in analyses():
        raise ConfigError(f"There is no analysis {name!r} for batches.{did_you_mean(name, analyses())} Known: {', '.join(sorted(analyses()))}.")
    label = content.pop("label", name)
    if not isinstance(label, str):
        raise ConfigError(f"The label of {name!r} must be a text, got {label!r}.")
    return Request(name, label, content)


def _check_request(request: Request, plan: Plan) -> None:
    parameters = dict(list(inspect.signature(analyses()[request.name]).parameters.items())[1:])
    plain = [name for name in parameters if name not in _NOT_PLAIN]
    for option, value in request.options.items():
        if option not in plain:
            raise ConfigError(f"{request.name} has no option {option!r} in a batch.{did_you_mean(option, plain)}")
        _check_reference(request, option, value)
    given = {*request.options, *(["start"] if request.name == "attribution_matrix" and plan.generates else [])}
    missing = [name for name in plain if parameters[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        hint = " For attribution_matrix, --max-new-tokens or --completion-column says where the generation starts." if missing == ["start"] else ""
        raise ConfigError(
            f"{request.name} needs {' and '.join(missing)}: --set {request.label}.{missing[0]}=VALUE, or @COLUMN of the input, or @predicted.{hint}"
        )


def _check_reference(request: Request, option: str, value: Any) -> None:
    if isinstance(value, Mapping) and option not in ("sae", "params") and set(value) not in ({"column"}, {"predicted"}):
        raise ConfigError(f"{request.label}.{option}: a table is {{column = NAME}} or {{predicted = true}}, got {dict(value)!r}.")
