"""What the page is started with: the one table of options, read by ``lensplorer explore`` and by ``panel serve dashboards/explorer.py --args``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lensplorer.config import Config, load_config
from lensplorer.errors import ConfigError, LensplorerError
from lensplorer.hosts import TOKEN_VARIABLE

DEFAULT_PORT = 5006
DEFAULT_ADDRESS = "127.0.0.1"

# Shared by explore and serve: who may come in, and what may be loaded from there.
Token = Annotated[
    str | None,
    typer.Option(
        envvar=TOKEN_VARIABLE,
        help="What a client must show: 'Authorization: Bearer …', or ?token=… once. Without one on another address, one is made and shown.",
    ),
]
AllowHost = Annotated[list[str] | None, typer.Option(help="A host name under which the server is called; may be repeated.")]
AllowModel = Annotated[list[str] | None, typer.Option(help="A built-in or hub model that may be loaded from a page or over HTTP; may be repeated.")]
ModelDir = Annotated[list[Path] | None, typer.Option(help="A folder whose models may be loaded by their path; may be repeated.")]


@dataclass(frozen=True)
class Options:
    """The options of one page.

    Attributes:
        prompt: the first prompt's text.
        model: as ``load_model`` takes it; None is its default.
        dtype: ``"float32"`` or ``"bfloat16"``.
        seed: seed of everything drawn at random; None takes a fresh one.
        config: the configuration file, or its defaults.
        layer_prob: show each candidate's probability layer by layer.
        cross_layer: match SAE features between layers.
        sae_config: file that lists SAEs.
        port, address, show: where to serve, and whether to open a browser. ``panel serve`` has its own for these.
        token: what a browser must show; empty for none on this machine, and one that is made elsewhere. ``panel serve`` has none.
        allowed_hosts: names under which the page may be called, beside this machine's own.
        allowed_models, model_dirs: models that may be loaded from the page (see ``ServerSettings``).
    """

    prompt: str = Config().prompt.example_prompt
    model: str | None = None
    dtype: str = "float32"
    seed: int | None = None
    config: Config = field(default_factory=Config)
    layer_prob: bool = False
    cross_layer: bool = False
    sae_config: Path | None = None
    port: int = DEFAULT_PORT
    address: str = DEFAULT_ADDRESS
    show: bool = False
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = ()
    model_dirs: tuple[Path, ...] = ()


def explore_options(
    input: Annotated[Path | None, typer.Option("--input", "-i", help="Text file with the first prompt; a final newline is left off.")] = None,
    model: Annotated[str | None, typer.Option(help="Built-in model, hub name or folder. Default: LENSPLORER_MODEL, else storyworld.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Load the model in bfloat16: half the memory, about two digits.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of everything drawn at random. Default: a fresh one.", min=0)] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with \\[model], \\[prompt], \\[display] and [\\[sae]].")] = None,
    layer_prob: Annotated[bool, typer.Option("--layer-prob", "--layer_prob", help="Show each candidate's probability layer by layer.")] = False,
    cross_layer: Annotated[bool, typer.Option("--cross-layer", "--cross_layer", help="Match SAE features between layers.")] = False,
    sae_config: Annotated[Path | None, typer.Option("--sae-config", "--sae_config", help="TOML file that lists SAEs.")] = None,
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = DEFAULT_PORT,
    address: Annotated[str, typer.Option(help="Address to serve on. On any other than this machine's own a token is needed.")] = DEFAULT_ADDRESS,
    show: Annotated[bool, typer.Option(help="Open the page in a browser.")] = False,
    token: Token = None,
    allow_host: AllowHost = None,
    allow_model: AllowModel = None,
    model_dir: ModelDir = None,
) -> Options:
    """Drive a language model one token at a time in the browser."""
    settings = load_config(config) if config is not None else Config()
    if sae_config is not None:
        _check_toml(sae_config)
    return Options(
        prompt=_read_prompt(input) if input is not None else settings.prompt.example_prompt,
        model=model if model is not None else settings.model.name,
        dtype="bfloat16" if bf16 else "float32",
        seed=seed,
        config=settings,
        layer_prob=layer_prob,
        cross_layer=cross_layer,
        sae_config=sae_config,
        port=port,
        address=address,
        show=show,
        token=token or None,
        allowed_hosts=tuple(allow_host or ()),
        allowed_models=tuple(allow_model or ()),
        model_dirs=tuple(model_dir or ()),
    )


def parse_options(arguments: Sequence[str]) -> Options:
    """The options in a list of command-line arguments.

    >>> parse_options(["--model", "gpt2", "--bf16"]).dtype
    'bfloat16'

    Raises:
        LensplorerError: an argument is unknown or has a bad value, or a file cannot be read.
    """
    app = typer.Typer(add_completion=False)
    app.command()(explore_options)
    command = typer.main.get_command(app)
    try:
        options = command.main(args=list(arguments), prog_name="explorer", standalone_mode=False)
    except Exception as error:
        if isinstance(error, LensplorerError) or not hasattr(error, "format_message"):
            raise
        raise ConfigError(error.format_message()) from error  # the parser's own errors, whichever of its packages defines them
    if not isinstance(options, Options):  # --help prints and returns its exit code
        raise ConfigError("These arguments ask for help, not for a page.")
    return options


def _read_prompt(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"The input file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The input file {str(path)!r} is not UTF-8 text (byte {error.start}): convert it, or give another file.") from error
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise ConfigError(f"The input file {str(path)!r} is empty: it should hold the first prompt.")
    return text


def _check_toml(path: Path) -> None:
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The SAE configuration {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The SAE configuration {str(path)!r} is not valid TOML: {error}.") from error
