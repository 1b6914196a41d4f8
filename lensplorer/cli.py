"""The command line: ``lensplorer explore``, ``lensplorer serve``, ``lensplorer models``, ``lensplorer saes``.

Heavy modules are imported by the command that needs them. An error that a person can act on is one line on stderr and exit code 1; a bad
option is exit code 2.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lensplorer import __version__
from lensplorer.batch.command import batch as batch_command
from lensplorer.dashboard.options import Options, explore_options
from lensplorer.errors import LensplorerError
from lensplorer.server.command import page_settings, serve_options
from lensplorer.server.command import serve as serve_door


class _App(typer.Typer):
    def __call__(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows \u2026 in place of an error
                stream.reconfigure(errors="backslashreplace")
        return super().__call__(*args, **options)


app = _App(
    name="lensplorer",
    help="Drive a language model one token at a time and see exactly why it says what it says.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _fail(text: str) -> typer.Exit:
    typer.echo(f"lensplorer: {text}", err=True)
    return typer.Exit(1)


def clean_errors(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose ``LensplorerError`` becomes one line on stderr and exit code 1."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except LensplorerError as error:
            raise _fail(str(error)) from error

    return command


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    level = os.environ.get("LENSPLORER_LOG_LEVEL", "warning").upper()
    if level not in logging.getLevelNamesMapping():
        raise _fail(f"LENSPLORER_LOG_LEVEL is {level.lower()!r}: expected debug, info, warning or error.")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lensplorer").setLevel(level)


@app.command(name="explore", help=explore_options.__doc__)
@clean_errors
@functools.wraps(explore_options)
def explore(**given: Any) -> None:
    serve(explore_options(**given))


def serve(options: Options) -> None:
    """Load the model, serve the page, and return when interrupted."""
    serve_door(page_settings(options), options, api=False)


@app.command(name="serve", help=serve_options.__doc__)
@clean_errors
@functools.wraps(serve_options)
def serve_api(**given: Any) -> None:
    serve_door(*serve_options(**given))


@app.command()
@clean_errors
def models(
    search: Annotated[str, typer.Argument(help="Show only names that contain this.")] = "",
) -> None:
    """List the models known by name. Others on the hub, folders in Hugging Face format and GGUF files work as well."""
    from lensplorer.catalogue import known_models

    found = [name for name in known_models() if search.lower() in name.lower()]
    if not found:
        raise LensplorerError(f"No known model has {search!r} in its name. `lensplorer models` lists all; a hub name, folder or GGUF file works too.")
    typer.echo("\n".join(found))


@app.command()
@clean_errors
def saes(
    search: Annotated[list[str] | None, typer.Argument(help="Show only SAEs that hold each of these words.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most; 0 for all.", min=0)] = 40,
) -> None:
    """List published SAEs and transcoders by release and id: model, hook, number of features and L0, where their names tell."""
    from lensplorer.saes import search_saes

    text = " ".join(search or [])
    found = search_saes(text)
    if found.empty:
        raise LensplorerError(f"No SAE has {text!r} in its release, id, model or repository. `lensplorer saes` lists all.")
    shown = found.head(limit or len(found))
    columns = shown[["release", "sae_id", "model", "hook", "width", "l0"]].astype("string").fillna("")
    typer.echo(columns.to_string(index=False, justify="left"))
    if len(shown) < len(found):
        typer.echo(f"… {len(found) - len(shown)} more: add words, or --limit 0.", err=True)


app.command(name="batch")(clean_errors(batch_command))


@app.command()
@clean_errors
def doctor() -> None:
    """Say what works on this machine: versions, devices, caches, optional packages, and a self-test. Exit code 1 if something needed fails."""
    from lensplorer.doctor import examine

    healthy = True
    for check in examine():
        typer.echo(check.line)
        healthy = healthy and not check.failed
    if not healthy:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
