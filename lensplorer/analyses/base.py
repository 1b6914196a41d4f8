"""What every analysis shares: the declaration of what it reads, and the making of its result.

A result is an ``xarray.Dataset``: named dimensions, token text as coordinates, float32 on the CPU, and attrs that say which analysis of
which model it is and where its definition comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.running import usual_autograd
from lensplorer.trace import Trace

if TYPE_CHECKING:
    import xarray as xr

#: Every analysis by name, in the order in which they were defined.
REGISTRY: dict[str, Callable[..., Any]] = {}

F = TypeVar("F", bound=Callable[..., Any])


def analysis(*, reads: Sequence[str], source: str, along: int = 0) -> Callable[[F], F]:
    """Register a function of a trace as an analysis.

    Args:
        reads: hook names or wildcards that it needs, e.g. ``"blocks.*.hook_resid_post"``; what a model does not have stands for nothing.
        source: where its definition comes from, kept in each result's attrs.
        along: where what it says of a position rests on so many positions up to it and on none later: a stepped trace then has it computed for
            new positions alone. 0: it does not.
    """

    def register(function: F) -> F:
        function.reads, function.source, function.along = tuple(reads), source, along  # type: ignore[attr-defined]
        asked = _asked(_along(function, along) if along else function)
        REGISTRY[function.__name__] = asked
        return asked

    return register


def _asked(function: F) -> F:
    """The analysis as anybody may call it: on arguments of the right kind, of traces that belong to their model, under any mode of autograd."""

    @wraps(function)
    def asked(*arguments: Any, **options: Any) -> xr.Dataset:
        for value in (*arguments, *options.values()):
            if isinstance(value, Trace):
                value.require_same_weights()
        with usual_autograd():
            return function(*arguments, **options)

    return expects(asked)  # type: ignore[return-value]


def _along(function: F, last: int) -> F:
    """The analysis that takes what a stepped trace knows of each position already."""

    @wraps(function)
    def asked(trace: Trace, *arguments: Any, **options: Any) -> xr.Dataset:
        known = None if arguments or not _is_value(options) else trace.along(function, options, last=last)
        if known is None:
            return function(trace, *arguments, **options)
        rows, window = known
        dims = {str(name): values.dims for name, values in window.variables.items() if name in rows}
        variables = {name: (dims[name], np.moveaxis(rows[name], 0, dims[name].index("position"))) for name in dims}
        coords = {str(name): values.variable for name, values in window.coords.items() if "position" not in values.dims}
        units = {str(name): values.attrs["units"] for name, values in window.variables.items() if name in dims and "units" in values.attrs}
        attrs = {str(name): value for name, value in window.attrs.items() if name not in _GIVEN}
        if "completeness" in rows:
            attrs["completeness"] = float(rows["completeness"].max())
        return make_result(trace, asked, variables, coords, units=units, **attrs)

    return asked  # type: ignore[return-value]


def _is_value(options: Mapping[str, Any]) -> bool:
    """Whether an answer can be kept under these options, and is the same whatever follows a position: ``"next"`` names the token that follows."""
    try:
        hash(tuple(options.items()))
    except TypeError:
        return False
    return "next" not in options.values()


_GIVEN = ("analysis", "model", "backend", "dtype", "device", "source", "interventions")  #: attrs that every result gets


def make_result(
    trace: Trace,
    function: Callable[..., Any],
    variables: Mapping[str, tuple[Sequence[str], Any]],
    coords: Mapping[str, Any] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    **attrs: Any,
) -> xr.Dataset:
    """The labelled result of an analysis.

    Args:
        trace: what it is a function of.
        function: the analysis (gives the name and the source).
        variables: name → (dimensions, values); tensors are detached to float32 on the CPU here, once.
        coords: further coordinates. A ``position`` dimension of the prompt's length gets its index and a ``token`` coordinate by itself,
            and so do ``query`` and ``source`` (``query_token``, ``source_token``).
        units: variable → unit.
        attrs: anything else a reader must know (target, completeness, method), as text or numbers, so that every file format can hold it.
    """
    info = trace.info
    data = {name: _variable(tuple(dims), to_numpy(values)) for name, (dims, values) in variables.items()}
    labels: dict[str, Any] = dict(coords or {})
    sizes = {dim: size for variable in data.values() for dim, size in variable.sizes.items()}
    for dim, label in (("position", "token"), ("query", "query_token"), ("source", "source_token")):
        if sizes.get(dim) == len(trace) and dim not in labels:
            labels[dim] = np.arange(len(trace))
            labels[label] = _variable((dim,), np.array(trace.token_texts, dtype=object))
    for dim in ("layer", "head", "rank", "neuron"):
        if dim in sizes and dim not in labels:
            labels[dim] = np.arange(sizes[dim]) + (1 if dim == "rank" else 0)
    dataset = _dataset(data, labels)
    for name, unit in (units or {}).items():
        dataset.variables[name].attrs["units"] = unit
    dataset.attrs = {
        "analysis": function.__name__,
        "model": info.name,
        "backend": info.backend,
        "dtype": info.dtype,
        "device": info.device,
        "source": getattr(function, "source", ""),
        "interventions": "; ".join(map(repr, trace.interventions)),
        **attrs,
    }
    return dataset


def _dataset(data: dict[str, xr.Variable], labels: Mapping[str, Any]) -> xr.Dataset:
    """``xr.Dataset(data, coords=labels)``, without aligning what has nothing to be aligned with: a step of the page makes half a dozen of these."""
    import xarray as xr

    variables, indexes = dict(data), dict[str, Any]()
    dims = {dim for variable in data.values() for dim in variable.dims}
    labels = {**labels, **{name: variable for name, variable in data.items() if name in dims}}  # what is named as a dimension labels it
    for name, label in labels.items():
        if not isinstance(label, xr.Variable):
            label = xr.Variable(*label) if isinstance(label, tuple) else xr.Variable((name,) if np.ndim(label) else (), label)
        variables[name] = label
        if label.dims == (name,):
            indexes[name] = xr.indexes.PandasIndex.from_variables({name: label}, options={})
            variables |= indexes[name].create_variables({name: label})
    return xr.Dataset._construct_direct(variables, set(labels), indexes=indexes)


def _variable(dims: tuple[str, ...], values: np.ndarray) -> xr.Variable:
    """As xarray makes it of an array, without its search for dates among texts, which takes longer than all else."""
    import xarray as xr

    return xr.Variable(dims, values, fastpath=values.dtype == object and values.ndim == len(dims))


def to_numpy(values: Any) -> Any:
    """Detached, on the CPU, float32 if floating; arrays and lists pass through as arrays."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        return (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)


def choose(name: str, value: str, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        AnalysisError: it is not; the message offers the nearest.
    """
    if value not in choices:
        raise AnalysisError(f"Unknown {name} {value!r}.{did_you_mean(value, choices)}")
    return value


def require_finite(trace: Trace, *values: torch.Tensor) -> None:
    """Refuse to go on with numbers that are NaN or infinite because the trace is; ``check_finite`` says where that began.

    Cheaper than looking through the trace first: what an analysis computed from it is small, and not finite wherever the trace was not.
    """
    if not all(bool(value.isfinite().all()) for value in values):
        check_finite(trace)


def check_finite(trace: Trace) -> None:
    """Refuse a trace whose residual stream or logits hold NaN or infinity.

    Whatever of the stream was read is looked at in the order in which the model computed it.

    Raises:
        AnalysisError: naming the first layer and position where they appear.
    """
    names = [name for layer in range(trace.n_layers) for name in (f"blocks.{layer}.hook_{part}" for part in _STREAM)]
    for name in names:
        if name in trace:
            _check_finite(trace, trace[name], name, f" (block {name.split('.')[1]} of 0 to {trace.n_layers - 1})")
    for start in range(0, len(trace), _ROWS):
        logits = trace.logits_at(start, min(len(trace), start + _ROWS))
        _check_finite(trace, logits, "the logits", "; the residual stream, as far as it was read, is finite", start)


_ROWS = 256  # rows of logits at a time
_STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def _check_finite(trace: Trace, value: torch.Tensor, name: str, where: str, start: int = 0) -> None:
    value = value.detach()
    if bool(value.sum(dtype=torch.float64 if value.dtype == torch.float64 else torch.float32).isfinite()):  # one pass; finite only if all are
        return
    finite = value.isfinite()
    if bool(finite.all()):
        return
    position = start + int((~finite).reshape(len(finite), -1).any(-1).nonzero()[0])
    kind = "NaN" if bool(value.isnan().any()) else "Infinite"
    remedy = " float16 overflows in some models: load with dtype='float32' or 'bfloat16'." if trace.info.dtype == "float16" else ""
    raise AnalysisError(f"{kind} activations first appear at {name}{where}, position {position} ({trace.token_texts[position]!r}).{remedy}")
