"""What the server may do, and how much of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from lensplorer.catalogue import holds_model, is_gguf, is_hub_file
from lensplorer.errors import ConfigError
from lensplorer.hosts import TOKEN_VARIABLE, is_loopback
from lensplorer.storyworld import MODEL_NAMES

DEFAULT_PORT = 8000
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServerSettings:
    """The settings of one server, checked when they are made.

    Attributes:
        model: the model to start with, as ``load_model`` takes it; None is its default.
        dtype: of every model it loads.
        address, port: where it listens.
        token: what a client must show; required for any address but this machine's own.
        allowed_models: names that may be loaded over HTTP. Empty: any on this machine; the first model and the built-in ones elsewhere.
        model_dirs: folders whose models may be loaded over HTTP by their path. Empty: no path but that of the first model.
        allowed_hosts: further host names under which it may be called. Empty: on this machine's own address only its own names; on any other
            address any name, since a token is needed there.
        cors_origins: origins of other web pages that may call it, e.g. ``"https://example.org"``.
        queue_size: requests that may wait for their turn.
        max_seconds: how long a request may compute; waiting does not count.
        max_body: bytes of a request.
        receive_seconds: within which a request must have arrived whole.
        max_tokens: tokens of a prompt with its completion.
        max_top_k: rows of a ranking.
        max_values: numbers and texts of a result.
        page: an HTML file to serve at ``/``, such as the page of the next-token visualization.

    Raises:
        ConfigError: a token is missing or too short, a path is in ``allowed_models``, a limit is below 1, a folder is none, or the page is no
            file.
    """

    model: str | None = None
    dtype: str = "float32"
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    allowed_models: tuple[str, ...] = ()
    model_dirs: tuple[Path, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    queue_size: int = 16
    max_seconds: int = 600
    max_body: int = 2**20
    receive_seconds: int = 30
    max_tokens: int = 1024
    max_top_k: int = 200
    max_values: int = 2_000_000
    page: Path | None = None

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise ConfigError(
                f"{self.address!r} can be reached from other machines: give a token with --token or {TOKEN_VARIABLE}, or serve on 127.0.0.1."
            )
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError(
                f"A token is at least {_SHORTEST_TOKEN} printable ASCII characters, so that it cannot be guessed: python -c"
                " 'import secrets; print(secrets.token_urlsafe())' makes one."
            )
        for name in self.allowed_models:
            if is_path(name):
                raise ConfigError(f"{name!r} is a path: --allow-model takes a built-in or hub name. --model-dir allows the models of a folder.")
        for limit in ("queue_size", "max_seconds", "max_body", "receive_seconds", "max_tokens", "max_top_k", "max_values"):
            if getattr(self, limit) < 1:
                raise ConfigError(f"{limit} must be at least 1, got {getattr(self, limit)}.")
        for folder in self.model_dirs:
            if not folder.is_dir():
                raise ConfigError(f"There is no folder {str(folder)!r} to load models from.")
        if self.page is not None and not self.page.is_file():
            raise ConfigError(f"There is no file {str(self.page)!r} to serve as the page.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.address)

    def may_load(self, name: str) -> bool:
        """Whether the model called ``name`` may be loaded over HTTP."""
        if is_path(name):
            return self._is_given(name)
        if self.is_local and not self.allowed_models:
            return True
        return name in (self.allowed_models or (self.model, *MODEL_NAMES))

    def _is_given(self, path: str) -> bool:
        """Whether a path leads into one of ``model_dirs``, links followed."""
        try:
            place = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, an unknown user, a NUL
            return False
        return any(place.is_relative_to(folder.resolve()) for folder in self.model_dirs)


def is_path(name: str) -> bool:
    """Whether a model's name would be read as a folder or a GGUF file of this machine.

    >>> is_path("./model"), is_path("/srv/model"), is_path("gpt2"), is_path("Qwen/Qwen2.5-0.5B"), is_path("a/../b"), is_path("model.gguf")
    (True, True, False, False, True, True)
    """
    if is_hub_file(name) and is_gguf(name):
        return os.path.exists(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or is_gguf(name):
        return True
    return name not in MODEL_NAMES and holds_model(Path(name))
