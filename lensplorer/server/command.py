"""``lensplorer serve``: the API and the dashboard in one process."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lensplorer.dashboard.options import Options, explore_options
from lensplorer.errors import ConfigError
from lensplorer.server.settings import DEFAULT_PORT, TOKEN_VARIABLE, ServerSettings


def serve_options(
    model: Annotated[str | None, typer.Option(help="Built-in model, hub name, folder or GGUF file. Default: LENSPLORER_MODEL or storyworld.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Load models in bfloat16: half the memory, about two digits.")] = False,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="Text file with the first prompt of the dashboard.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything the dashboard draws at random. Default: a fresh one.", min=0)] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with \\[model], \\[prompt], \\[display] and [\\[sae]].")] = None,
    address: Annotated[str, typer.Option(help="Address to serve on. Anything but this machine needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = DEFAULT_PORT,
    token: Annotated[
        str | None, typer.Option(envvar=TOKEN_VARIABLE, help="What a client must show: 'Authorization: Bearer …', or ?token=… once.")
    ] = None,
    allow_model: Annotated[list[str] | None, typer.Option(help="A model that may be loaded over HTTP; may be repeated.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name under which the server is called; may be repeated.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Origin of another web page that may call the API; may be repeated.")] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; the next one gets 429.", min=1)] = ServerSettings.queue_size,
    max_seconds: Annotated[int, typer.Option(help="Seconds that a request may compute.", min=1)] = ServerSettings.max_seconds,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = ServerSettings.max_body,
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
        token=token or None,
        allowed_models=tuple(allow_model or ()),
        allowed_hosts=tuple(allow_host or ()),
        cors_origins=tuple(cors_origin or ()),
        queue_size=queue,
        max_seconds=max_seconds,
        max_body=max_body,
        max_tokens=max_tokens,
        max_top_k=max_top_k,
        page=page,
    )
    return settings, options if dashboard else None


def serve(settings: ServerSettings, options: Options | None) -> None:
    """Load the model, serve, and return when interrupted.

    Raises:
        ModelError: as ``load_model``.
        ConfigError: the address or port cannot be served on.
    """
    typer.echo("Loading the model …", err=True)
    import uvicorn

    from lensplorer.models import model_info
    from lensplorer.server.app import create_app
    from lensplorer.server.models import ModelStore

    listening = _listen(settings)
    with contextlib.closing(listening):
        store = ModelStore(settings)
        model = store.get()
        info = model_info(model)
        typer.echo(f"{info.name}: {info.device}, {info.dtype}, {info.backend}", err=True)
        app: Any = create_app(settings, model=model, store=store)
        if options is not None:
            from lensplorer.server.dashboard import PATH, add_dashboard

            add_dashboard(app, settings, options)
        host = f"[{settings.address}]" if ":" in settings.address else settings.address
        root = f"http://{host}:{listening.getsockname()[1]}"
        typer.echo(f"{root}/docs" if options is None else f"{root}{PATH}\n{root}/docs")
        sys.stdout.flush()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=75))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(settings.address, settings.port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            stack.pop_all()
    except OSError as error:
        raise ConfigError(f"{settings.address}:{settings.port} cannot be served: {error.strerror or error}. Choose another --port.") from error
    return listening
