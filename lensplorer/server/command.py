"""``lensplorer serve``, the API and the dashboard in one process, and ``lensplorer explore``, the dashboard alone: one server behind one door."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from lensplorer.dashboard.options import AllowHost, AllowModel, ModelDir, Options, Token, explore_options
from lensplorer.errors import ConfigError
from lensplorer.hosts import is_loopback
from lensplorer.server.settings import DEFAULT_PORT, ServerSettings

_WAITING = 128  # connections that may wait


def serve_options(
    model: Annotated[str | None, typer.Option(help="Built-in model, hub name, folder or GGUF file. Default: LENSPLORER_MODEL or storyworld.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Load models in bfloat16: half the memory, about two digits.")] = False,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="Text file with the first prompt of the dashboard.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything the dashboard draws at random. Default: a fresh one.", min=0)] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with \\[model], \\[prompt], \\[display] and [\\[sae]].")] = None,
    address: Annotated[str, typer.Option(help="Address to serve on. On any other than this machine's own a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = DEFAULT_PORT,
    token: Token = None,
    allow_host: AllowHost = None,
    allow_model: AllowModel = None,
    model_dir: ModelDir = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Origin of another web page that may call the API; may be repeated.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; the next one gets 429.", min=1)] = ServerSettings.queue_size,
    max_seconds: Annotated[int, typer.Option(help="Seconds that a request may compute.", min=1)] = ServerSettings.max_seconds,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = ServerSettings.max_body,
    receive_seconds: Annotated[int, typer.Option(help="Seconds in which a request must have arrived whole.", min=1)] = ServerSettings.receive_seconds,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a prompt with its completion.", min=1)] = ServerSettings.max_tokens,
    max_top_k: Annotated[int, typer.Option(help="Rows of a ranking.", min=1)] = ServerSettings.max_top_k,
    page: Annotated[Path | None, typer.Option(help="HTML file to serve at /, such as that of the next-token visualization.")] = None,
    dashboard: Annotated[bool, typer.Option(help="Serve the dashboard at /explorer.")] = True,
) -> tuple[ServerSettings, Options | None]:
    """Serve the API over HTTP, and the dashboard beside it."""
    options = explore_options(input=input, model=model, bf16=bf16, seed=seed, config=config)
    settings = ServerSettings(
        model=options.model,
        dtype=options.dtype,
        address=address,
        port=port,
        token=_token(token, address),
        allowed_models=tuple(allow_model or ()),
        model_dirs=tuple(model_dir or ()),
        allowed_hosts=tuple(allow_host or ()),
        cors_origins=tuple(cors_origin or ()),
        queue_size=queue,
        max_seconds=max_seconds,
        max_body=max_body,
        receive_seconds=receive_seconds,
        max_tokens=max_tokens,
        max_top_k=max_top_k,
        page=page,
    )
    return settings, options if dashboard else None


def page_settings(options: Options) -> ServerSettings:
    """The settings of ``lensplorer explore``.

    On this machine, models of the folder in which it was started may be loaded from the page too.

    Raises:
        ConfigError: as ``ServerSettings``.
    """
    here = (Path.cwd(),) if is_loopback(options.address) else ()
    return ServerSettings(
        model=options.model,
        dtype=options.dtype,
        address=options.address,
        port=options.port,
        token=_token(options.token, options.address),
        allowed_models=options.allowed_models,
        model_dirs=options.model_dirs or here,
        allowed_hosts=options.allowed_hosts,
    )


class _MadeToken(str):
    """A token that nobody has yet: it is shown once, in the link."""


def _token(given: str | None, address: str) -> str | None:
    """The token that was given; where there is none and other machines reach the address, one made for this run."""
    return given or (None if is_loopback(address) else _MadeToken(secrets.token_urlsafe()))


def serve(settings: ServerSettings, options: Options | None, *, api: bool = True) -> None:
    """Load the model, serve the API and the dashboard (None: no dashboard), and return when interrupted.

    Raises:
        ModelError: as ``load_model``.
        ConfigError: the address or port cannot be served on.
    """
    listening = _listen(settings)
    with contextlib.closing(listening):
        typer.echo("Loading the model …", err=True)
        from lensplorer.models import model_info
        from lensplorer.server.app import create_app
        from lensplorer.server.dashboard import PATH, add_dashboard, create_page
        from lensplorer.server.models import ModelStore

        store = ModelStore(settings)
        model = store.get()  # held here, so that the store keeps it
        info = model_info(model)
        proof = "" if info.difference is None else f", difference to Hugging Face {info.difference:.1e}"
        typer.echo(f"{info.name}: {info.device}, {info.dtype}, {info.backend}{proof}", err=True)
        if info.reason:
            typer.echo(info.reason, err=True)
        app: Any
        if api:
            app = create_app(settings, model=model, store=store)
            if options is not None:
                add_dashboard(app, options, store)
        elif options is not None:
            app = create_page(settings, options, store)
        root = f"http://{_shown_host(settings)}:{listening.getsockname()[1]}"
        token = f"?token={settings.token}" if isinstance(settings.token, _MadeToken) else ""
        links = [f"{root}{PATH}{token}"] * (options is not None) + [f"{root}/docs{token if options is None else ''}"] * api
        typer.echo("\n".join(links))
        sys.stdout.flush()
        if options is not None and options.show:
            threading.Thread(target=webbrowser.open, args=(links[0],), daemon=True).start()
        _run(app, listening, settings)


def _run(app: Any, listening: socket.socket, settings: ServerSettings) -> None:
    """Serve until interrupted."""
    import uvicorn

    from lensplorer.server.limits import head_limit

    config = uvicorn.Config(
        app,
        http=head_limit(settings.receive_seconds),
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # it takes longer than sending does on this machine
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=75,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _shown_host(settings: ServerSettings) -> str:
    """How a browser may call the server: an address that stands for all of a machine's is no name for it."""
    address = settings.address
    if address in ("", "0.0.0.0", "::"):
        return settings.allowed_hosts[0] if settings.allowed_hosts else socket.gethostname()
    return f"[{address}]" if ":" in address else address


def _listen(settings: ServerSettings) -> socket.socket:
    """A socket that takes connections; they wait until the server runs.

    Raises:
        ConfigError: the address or port cannot be served on.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(settings.address, settings.port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(_WAITING)
            stack.pop_all()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{settings.address}:{settings.port} cannot be served: {reason}. Choose another --port.") from error
    return listening
