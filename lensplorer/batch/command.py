"""``lensplorer batch``: the command line of ``run_batch``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lensplorer.batch.engine import Progress

#: Seconds between two lines of progress where there is no terminal to overwrite one on.
_EVERY = 10.0


def batch(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A text with a prompt per line, .jsonl, .csv, .parquet, or a data set's folder.")],
    out: Annotated[Path, typer.Option(help="A folder of this batch's own. A batch that was stopped goes on where it was.")],
    analysis: Annotated[list[str] | None, typer.Option(help="An analysis; give it again for each further one.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="ANALYSIS.OPTION=VALUE", help="An option: logit_lens.top_k=3, attribute.target=@answer.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML with \\[batch] and [\\[analysis]] tables; what is given here comes before it.")] = None,
    model: Annotated[str | None, typer.Option(help="A built-in model, a hub name or a folder.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    column: Annotated[str | None, typer.Option(help="The prompt's column; else prompt or text.")] = None,
    id_column: Annotated[str | None, typer.Option(help="A column that names each prompt in the results.")] = None,
    completion_column: Annotated[str | None, typer.Option(help="A column with the text that counts as generated.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to generate after each prompt, greedily.", min=0)] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set.")] = None,
    truncate: Annotated[bool | None, typer.Option("--truncate", help="Keep the end of a prompt longer than the context.")] = None,
    part_size: Annotated[int | None, typer.Option(help="Prompts written at once, and lost at most by a kill. Default: 256.", min=1)] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per forward pass. Default: by memory.", min=1)] = None,
    tokenlens: Annotated[bool | None, typer.Option("--tokenlens", help="Write a TokenLens JSON per prompt too.")] = None,
    engine: Annotated[str, typer.Option(help="local (this process) or ray (Ray Data actors).")] = "local",
    workers: Annotated[int, typer.Option(help="Ray actors, one model each.", min=1)] = 2,
) -> None:
    """Run analyses over many prompts and write Parquet. Exit code 0 also where single prompts failed: their errors are in the tables."""
    from lensplorer.batch.engine import run_batch
    from lensplorer.batch.plan import load_plan_file, parse_setting

    options, tables = load_plan_file(config) if config is not None else ({}, [])
    given: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "column": column,
        "id_column": id_column,
        "completion_column": completion_column,
        "max_new_tokens": max_new_tokens,
        "split": split,
        "truncate": truncate,
        "part_size": part_size,
        "batch_tokens": batch_tokens,
        "tokenlens": tokenlens,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    if "model" not in options:
        from lensplorer.catalogue import default_model_name

        options["model"] = default_model_name()
    requests: list[Any] = [*tables, *(analysis or [])]
    settings = [parse_setting(text) for text in setting or []]
    report = run_batch(source, out, analyses=requests, settings=settings, engine=engine, workers=workers, device=device, progress=_Shown(), **options)
    rows = sum(count for name, count in report.rows.items() if name not in ("prompts", "runs"))
    resumed = f", {report.resumed:,} of them done before" if report.resumed else ""
    failed = f", {report.errors:,} with errors (see runs/)" if report.errors else ""
    typer.echo(f"{report.prompts:,} prompts{resumed}{failed}: {rows:,} rows in {report.out}, {report.seconds:.0f} s")


class _Shown:
    """Progress on stderr: one line that is overwritten on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.said = -_EVERY

    def __call__(self, progress: Progress) -> None:
        now, last, on_terminal = time.monotonic(), progress.done == progress.total, sys.stderr.isatty()
        if not (on_terminal or last or now - self.said >= _EVERY):
            return
        self.said = now
        left = "" if progress.remaining is None else f", {_clock(progress.remaining)} left"
        errors = f", {progress.errors:,} with errors" if progress.errors else ""
        line = f"{progress.done:,} of {progress.total:,} prompts, {progress.rate:.1f} a second{left}{errors}"
        typer.echo(f"\r\x1b[K{line}" if on_terminal else line, err=True, nl=last or not on_terminal)


def _clock(seconds: float) -> str:
    """
    >>> _clock(75), _clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
