"""A result as a table: CSV and Parquet with a row per index, NetCDF as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lensplorer.arguments import expects
from lensplorer.errors import FormatError, did_you_mean
from lensplorer.formats.files import written_atomically

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray as xr

TABLES = (".csv", ".parquet", ".nc")


@expects
def export_table(result: xr.Dataset, path: str | Path) -> Path:
    """Write an analysis' result in the format that the suffix names.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> scores = lp.token_scores(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = lp.export_table(scores, folder + "/scores.csv")
    ...     written.read_text(encoding="utf-8").splitlines()[0]
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
            try:
                import pyarrow.parquet
            except ModuleNotFoundError as error:
                raise FormatError('Parquet needs pyarrow: pip install "lensplorer[tables]". A .csv file needs nothing.') from error

            pyarrow.parquet.write_table(arrow_of(result), temporary)
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

    pieces = row_groups(result)
    tables = [pd.DataFrame(columns) for columns in pieces]
    present = list(dict.fromkeys(name for columns in column_order(result) for name in columns if any(name in piece for piece in pieces)))
    for table in tables:
        for name in table.columns:
            if table[name].dtype.kind in "iu" and any(name not in other.columns for other in tables):
                table[name] = table[name].astype("Int64")  # integers that may be empty
    return pd.concat(tables, ignore_index=True)[present] if len(tables) > 1 else tables[0][present]


def column_order(result: xr.Dataset) -> tuple[list[str], list[str], list[str]]:
    """The columns of a result's rows: dimensions, further coordinates, variables."""
    dims = [str(dim) for dim in result.dims]
    return dims, [str(name) for name in result.coords if name not in dims], [str(name) for name in result.data_vars]


def row_groups(result: xr.Dataset) -> list[dict[str, np.ndarray]]:
    """The rows of ``table_of`` as columns, a group for each set of dimensions that variables have, largest first. [row] each"""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variable in result.data_vars.items():
        groups.setdefault(tuple(str(dim) for dim in result.dims if dim in variable.dims), []).append(str(name))
    found = []
    for dims in sorted(groups, key=len, reverse=True):
        shape = tuple(result.sizes[dim] for dim in dims)
        columns = {dim: _along((dim,), _labels(result, dim), dims, shape) for dim in dims}
        for name, coordinate in result.coords.items():
            if name not in dims and coordinate.dims and set(coordinate.dims) <= set(dims):
                columns[str(name)] = _along(tuple(map(str, coordinate.dims)), coordinate.values, dims, shape)
        for name in groups[dims]:
            columns[name] = _along(tuple(map(str, result[name].dims)), result[name].values, dims, shape)
        found.append(columns)
    return found or [{}]


def _labels(result: xr.Dataset, dim: str) -> np.ndarray:
    own = dim in result.coords and result.coords[dim].dims == (dim,)  # head_clusters has a dimension and another coordinate of one name
    return np.asarray(result.coords[dim].values) if own else np.arange(result.sizes[dim])


def _along(own: tuple[str, ...], values: np.ndarray, dims: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Values of some dimensions at each row of all. [row]"""
    ordered = np.transpose(values, [own.index(dim) for dim in dims if dim in own])
    spread = ordered.reshape([size if dim in own else 1 for dim, size in zip(dims, shape)])
    return np.asarray(np.broadcast_to(spread, shape)).reshape(-1)


def arrow_of(result: xr.Dataset) -> pa.Table:
    """The rows of ``table_of`` as an Arrow table, with the attrs in its metadata."""
    import pyarrow as pa

    pieces = [pa.table({name: _arrow_column(values) for name, values in columns.items()}) for columns in row_groups(result)]
    whole = pa.concat_tables(pieces, promote_options="default") if len(pieces) > 1 else pieces[0]
    present = [name for columns in column_order(result) for name in columns if name in whole.column_names]
    return whole.select(present).replace_schema_metadata({f"lensplorer.{key}": str(value) for key, value in result.attrs.items()})


def _arrow_column(values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    if values.dtype.kind in "OUS":
        return pa.array(values.astype(object), type=pa.string())
    return pa.array(values)
