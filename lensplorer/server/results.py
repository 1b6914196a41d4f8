"""A result as JSON: dims, coords, variables, attrs. NaN and infinity, which JSON does not have, are null."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from lensplorer.server.limits import TooLarge

if TYPE_CHECKING:
    import xarray as xr


class Variable(BaseModel):
    """A labelled array: nested lists in the order of its dims."""

    dims: list[str]
    data: Any
    attrs: dict[str, Any]


class Result(BaseModel):
    """An ``xarray.Dataset``; ``xarray.Dataset.from_dict({**result, "data_vars": result["variables"]})`` makes one of it."""

    dims: dict[str, int] = Field(description="Sizes by name.")
    coords: dict[str, Variable]
    variables: dict[str, Variable]
    attrs: dict[str, Any] = Field(description="Analysis, model, dtype, source of the definition, completeness where there is an identity, …")


def to_json(result: xr.Dataset, *, max_values: int) -> bytes:
    """The result as JSON text.

    Raises:
        TooLarge: it holds more than ``max_values`` numbers and texts.
    """
    total = sum(array.size for array in result.variables.values())
    if total > max_values:
        raise TooLarge(
            f"The result of {result.attrs['analysis']} holds {total} values, more than the {max_values} that this server gives. Shorten the prompt."
        )
    content = {
        "dims": {str(name): int(size) for name, size in result.sizes.items()},
        "coords": {str(name): _variable(array.variable) for name, array in result.coords.items()},
        "variables": {str(name): _variable(array.variable) for name, array in result.data_vars.items()},
        "attrs": _attrs(result.attrs),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _variable(variable: xr.Variable) -> dict[str, Any]:
    values = variable.values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        plain = values.astype(object)
        plain[~np.isfinite(values)] = None
        data = plain.tolist()
    else:
        data = values.tolist()
    return {"dims": [str(dim) for dim in variable.dims], "data": data, "attrs": _attrs(variable.attrs)}


def _attrs(attrs: Any) -> dict[str, Any]:
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()}
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in plain.items()}
