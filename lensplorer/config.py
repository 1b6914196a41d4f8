"""The configuration file: the TOML of Token Explorer, accepted as it is.

An unknown key is an error that names the nearest known one, so that a misspelt setting never passes in silence.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lensplorer.errors import ConfigError, did_you_mean, first_line

MOST_PROMPTS = 1000  #: that a session may hold, and a file of one


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: which model, and whether the SAEs of this file, or the built-in model's own, are loaded with the page."""

    name: str | None = None
    enable_sae: bool = True


@dataclass(frozen=True)
class PromptConfig:
    """``[prompt]``: the first prompt, and how many the list may hold."""

    example_prompt: str = "Once upon a time, there was a"
    max_prompts: int = 9


@dataclass(frozen=True)
class DisplayConfig:
    """``[display]``: candidates shown, and token sequences kept for going back."""

    tokens_to_show: int = 30
    cache_size: int = 100


@dataclass(frozen=True)
class SAEConfig:
    """One ``[[sae]]``: by release and sae_id, by folder, or by filename, with repo_id on the hub.

    A raw file that does not say it itself is described by layer, hook, hook_out, architecture and k, as in ``load_sae``. labels is a file or folder
    of what other programs wrote about its features.
    """

    layer: int | None = None
    repo_id: str | None = None
    filename: str | None = None
    revision: str | None = None
    release: str | None = None
    sae_id: str | None = None
    folder: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    architecture: str | None = None
    k: int | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Config:
    """The whole configuration; every part has defaults."""

    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    display: DisplayConfig = field(default_factory=DisplayConfig)
    sae: tuple[SAEConfig, ...] = ()


_SECTIONS: dict[str, type] = {"model": ModelConfig, "prompt": PromptConfig, "display": DisplayConfig, "sae": SAEConfig}
_TYPES = {"str": str, "int": int, "bool": bool}


def load_config(path: str | Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read or parsed; a section or key is unknown; a value has the wrong type or is out of range.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a path, of nesting
        raise ConfigError(f"The configuration {str(path)!r} is not valid TOML: {first_line(error)}.") from error
    return parse_config(content, name=str(path))


def parse_config(content: dict[str, Any], *, name: str = "configuration") -> Config:
    """The ``Config`` in a parsed TOML document.

    >>> parse_config({"display": {"tokens_to_show": 10}}).display.tokens_to_show
    10

    Raises:
        ConfigError: as ``load_config``.
    """
    for section in content:
        if section not in _SECTIONS:
            raise ConfigError(f"{name}: unknown section [{section}].{did_you_mean(section, _SECTIONS)}")
    tables = content.get("sae", [])
    if not isinstance(tables, list):
        raise ConfigError(f"{name}: write each SAE as [[sae]], in double brackets.")
    config = Config(
        model=_section("model", content.get("model", {}), name),
        prompt=_section("prompt", content.get("prompt", {}), name),
        display=_section("display", content.get("display", {}), name),
        sae=tuple(_section("sae", table, name) for table in tables),
    )
    for section, key in (("prompt", "max_prompts"), ("display", "tokens_to_show"), ("display", "cache_size")):
        value = getattr(getattr(config, section), key)
        if value < 1:
            raise ConfigError(f"{name}: [{section}] {key} must be at least 1, got {value}.")
    if config.prompt.max_prompts > MOST_PROMPTS:
        raise ConfigError(f"{name}: [prompt] max_prompts must be at most {MOST_PROMPTS}, got {config.prompt.max_prompts}.")
    for sae in config.sae:
        if not (sae.release and sae.sae_id) and not (sae.repo_id and sae.filename) and not sae.folder:
            raise ConfigError(f"{name}: a [[sae]] needs release and sae_id, or repo_id and filename, or folder.")
    return config


def _section(section: str, values: Any, name: str) -> Any:
    kind = _SECTIONS[section]
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: [{section}] must be a table of keys and values.")
    known = {item.name: str(item.type) for item in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{name}: unknown key {key!r} in [{section}].{did_you_mean(key, known)}")
        wanted = _TYPES[known[key].removesuffix(" | None")]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(f"{name}: [{section}] {key} must be {wanted.__name__}, got {value!r}.")
    return kind(**values)
