"""What the server may do, and how much of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from lensplorer.catalogue import holds_model, is_gguf
from lensplorer.errors import ConfigError
from lensplorer.storyworld import MODEL_NAMES

TOKEN_VARIABLE = "LENSPLORER_TOKEN"  #: environment variable that holds the token
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
        allowed_hosts: further host names under which it may be called; on this machine's own address only its own names are answered.
        cors_origins: origins of other web pages that may call it, e.g. ``"https://example.org"``.
        queue_size: requests that may wait for their turn.
        max_seconds: how long a request may compute; waiting does not count.
        max_body: bytes of a request.
        max_tokens: tokens of a prompt with its completion.
        max_top_k: rows of a ranking.
        max_values: numbers and texts of a result.
        page: an HTML file to serve at ``/``, such as the page of the next-token visualization.

    Raises:
        ConfigError: a token is missing or too short, a path is in ``allowed_models``, a limit is below 1, or the page is no file.
    """

    model: str | None = None
    dtype: str = "float32"
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    allowed_models: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    queue_size: int = 16
    max_seconds: int = 600
    max_body: int = 2**20
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
                raise ConfigError(
                    f"{name!r} is a path: over HTTP a model is loaded by its built-in or hub name. Start the server with --model {name}."
                )
        for limit in ("queue_size", "max_seconds", "max_body", "max_tokens", "max_top_k", "max_values"):
            if getattr(self, limit) < 1:
                raise ConfigError(f"{limit} must be at least 1, got {getattr(self, limit)}.")
        if self.page is not None and not self.page.is_file():
            raise ConfigError(f"There is no file {str(self.page)!r} to serve as the page.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.address)

    def may_load(self, name: str) -> bool:
        """Whether the model called ``name`` may be loaded over HTTP."""
        if self.is_local and not self.allowed_models:
            return True
        return name in (self.allowed_models or (self.model, *MODEL_NAMES)) and not is_path(name)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_path(name: str) -> bool:
    """Whether a model's name would be read as a folder or as a GGUF file.

    >>> is_path("./model"), is_path("/srv/model"), is_path("gpt2"), is_path("Qwen/Qwen2.5-0.5B"), is_path("a/../b"), is_path("model.gguf")
    (True, True, False, False, True, True)
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or is_gguf(name):
        return True
    return name not in MODEL_NAMES and holds_model(Path(name))
