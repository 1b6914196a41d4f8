"""A result as a table: CSV and Parquet with a row per index, NetCDF as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lensplorer.errors import FormatError, did_you_mean
from lensplorer.formats.files import written_atomically

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

TABLES = (".csv", ".parquet", ".nc")


def export_table(result: xr.Dataset, path: str | Path) -> Path:
    """Write an analysis' result in the format that the suffix names.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> scores = lp.token_scores(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = lp.export_table(scores, folder + "/scores.csv")
    ...     written.read_text().splitlines()[0]
    'position,token,token_id,probability,surprisal,rank,entropy,normalised_entropy,energy'

    Args:
        result: what an analysis returned.
        path: ``.csv`` and ``.parquet`` hold the rows of ``table_of``; ``.nc`` (NetCDF) holds the dataset itself, attrs included.

    Returns:
        the path.

    Raises:
        FormatError: another suffix; an extra is missing; the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in TABLES:
        raise FormatError(f"{path.name!r} names no table format.{did_you_mean(path.suffix or path.name, TABLES)}")
    with written_atomically(path) as temporary:
        if path.suffix == ".csv":
            table_of(result).to_csv(temporary, index=False)
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(_arrow(result), temporary)
        else:
            # NetCDF 3, through scipy, is everywhere; a text is a fixed-width array in it.
            result.to_netcdf(temporary, engine="scipy")
    return path


def table_of(result: xr.Dataset) -> pd.DataFrame:
    """The result as rows: one per index, a column per dimension, coordinate and variable.

    Variables of fewer dimensions than others get rows of their own, empty in the other dimensions, rather than being repeated: the rows of
    ``logit_lens`` with a rank hold its tokens, those without hold entropy and divergence.
    """
    import pandas as pd

    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variable in result.data_vars.items():
        dims = tuple(str(dim) for dim in result.dims if dim in variable.dims)
        groups.setdefault(dims, []).append(str(name))
    order = [str(dim) for dim in result.dims]
    tables = []
    for dims in sorted(groups, key=len, reverse=True):
        part = result[groups[dims]]
        part = part.drop_vars([name for name, coord in part.coords.items() if not coord.dims])
        table = part.to_dataframe(dim_order=list(dims)).reset_index() if dims else pd.DataFrame([{n: result[n].item() for n in groups[dims]}])
        tables.append(table.convert_dtypes(convert_integer=False, convert_floating=False, convert_boolean=False) if not len(table) else table)
    columns = [*order, *(str(name) for name in result.coords if name not in order), *(str(name) for name in result.data_vars)]
    present = [name for name in dict.fromkeys(columns) if any(name in table.columns for table in tables)]
    if len(tables) == 1:
        return tables[0][present]
    for table in tables:
        for name in present:
            if name in table.columns and table[name].dtype.kind in "iu" and any(name not in other.columns for other in tables):
                table[name] = table[name].astype("Int64")
    whole = pd.concat([table.reindex(columns=[n for n in present if n in table.columns]) for table in tables], ignore_index=True)
    return whole[present]


def _arrow(result: xr.Dataset) -> object:
    import pyarrow as pa

    table = pa.Table.from_pandas(table_of(result), preserve_index=False)
    attributes = {f"lensplorer.{key}": str(value) for key, value in result.attrs.items()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **attributes})
