"""One endpoint per analysis: a body made from its signature, the runs it is a function of, and its result as JSON."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import lensplorer
import lensplorer.analyses
from lensplorer.analyses.attribution import GRADIENT_METHODS
from lensplorer.analyses.base import REGISTRY
from lensplorer.analyses.metrics import Metric
from lensplorer.errors import SAEError
from lensplorer.interventions.saving import from_dict
from lensplorer.interventions.sessions import checked
from lensplorer.linear import LINEAR
from lensplorer.running import Intervention, Reads
from lensplorer.saes import load_sae, sae_reads
from lensplorer.saes.registry import BUILT_IN, built_in_ids
from lensplorer.sampling.grammars import Constraint
from lensplorer.server.generation import read_params
from lensplorer.server.limits import check_tokens, check_top_k
from lensplorer.server.models import Served
from lensplorer.server.requests import LEFT_OUT, Interventions, Name, RunBody, SAEBody, request_model
from lensplorer.server.schemas import Body
from lensplorer.server.settings import ServerSettings
from lensplorer.trace import Trace, prompt_ids, run_trace

if TYPE_CHECKING:
    import xarray as xr

_MOST_SAES = 4


class SAEs:
    """The SAEs used last, by release and id."""

    def __init__(self, settings: ServerSettings, load: Callable[..., Any] = load_sae) -> None:
        self._settings, self._load = settings, load
        self._kept: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, body: SAEBody, device: str) -> Any:
        """
        Raises:
            SAEError: it cannot be loaded, or may not be: elsewhere than on this machine only the built-in ones may.
        """
        if not self._settings.is_local and body.sae_id not in built_in_ids(body.release):
            raise SAEError(f"The SAE {body.release!r} {body.sae_id!r} may not be loaded here: only the built-in ones of {', '.join(BUILT_IN)} may.")
        key = (body.release, body.sae_id, device)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._load(body.release, body.sae_id, device=device)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_SAES:
                self._kept.popitem(last=False)
            return self._kept[key]


@dataclass(frozen=True)
class Context:
    """What an endpoint has at hand beside its body."""

    served: Served
    settings: ServerSettings
    saes: SAEs

    def interventions(self, saved: Iterable[Mapping[str, Any]]) -> tuple[Intervention, ...]:
        """
        Raises:
            SessionError: one is damaged or does not fit the model.
        """
        return checked(self.served.model, [from_dict(one) for one in saved])

    def run(self, body: RunBody, *, reads: Reads = (), gradients: bool | str = False, rule: str = "gate") -> Trace:
        """The run that a body asks for."""
        ids = prompt_ids(self.served.model, body.model_dump()["prompt"], prepend_bos=body.prepend_bos)
        check_tokens(self.settings, ids)
        return run_trace(self.served.model, ids, reads=reads, interventions=self.interventions(body.interventions), gradients=gradients, rule=rule)


@dataclass(frozen=True)
class Endpoint:
    """One analysis over HTTP.

    Attributes:
        name: of the analysis.
        body: what a request holds.
        call: a body → the result.
    """

    name: str
    body: type[Body]
    call: Callable[[Context, Any], xr.Dataset]

    @property
    def summary(self) -> str:
        """The first line of the analysis' docstring."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """The analysis' docstring."""
        return inspect.getdoc(REGISTRY[self.name]) or ""

    def answer(self, context: Context, body: Body) -> xr.Dataset:
        """The result, within the limits."""
        counts = {name: value for name in ("k", "top_k", "top") if isinstance(value := getattr(body, name, None), int)}
        check_top_k(context.settings, **counts)
        return self.call(context, body)


# -- options: from JSON to what the library takes -------------------------------------------------------------------------------------------


def options(function: Callable[..., Any], body: Body) -> dict[str, Any]:
    """The analysis' options in a body, as it takes them; runs and SAEs, which are no options, are left to the caller."""
    found = {name: getattr(body, name) for name in inspect.signature(function).parameters if name not in LEFT_OUT and hasattr(body, name)}
    return {name: _READERS.get(name, _as_it_is)(value) for name, value in found.items() if name not in _GIVEN_APART}


def _as_it_is(value: Any) -> Any:
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "metric": lambda body: Metric(**body.model_dump()),
    "params": lambda body: None if body is None else read_params(body),
    "constraint": lambda body: None if body is None else Constraint(body.kind, body.text),
}
_GIVEN_APART = ("clean", "corrupt", "trace_a", "trace_b", "sae", "saes", "attribution", "attributions")


def _gradients(*methods: str) -> bool:
    return any(method in GRADIENT_METHODS for method in methods)


# -- the calls --------------------------------------------------------------------------------------------------------------------------------


def _of_one_run(name: str) -> Endpoint:
    function: Any = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        method = getattr(body, "method", "")
        graph = LINEAR if method == LINEAR else _gradients(method)
        trace = context.run(body, reads=[function], gradients=graph, rule=getattr(body, "rule", "gate"))
        return function(trace, **options(function, body))

    return Endpoint(name, request_model(_title(name), function, base=RunBody, without=("trace",)), call)


def _of_two_runs(name: str, first: str, second: str) -> Endpoint:
    function = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        one, other = context.run(getattr(body, first)), context.run(getattr(body, second))
        return function(one, other, **options(function, body))

    return Endpoint(name, request_model(_title(name), function, runs={first: RunBody, second: RunBody}), call)


def _of_saes(name: str, parameter: str) -> Endpoint:
    function = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        asked = getattr(body, parameter)
        device = context.served.info.device
        saes = [context.saes.get(one, device) for one in asked] if isinstance(asked, list) else context.saes.get(asked, device)
        trace = context.run(body, reads=sae_reads(context.served.model, saes))
        return function(trace, saes, **options(function, body))

    return Endpoint(name, request_model(_title(name), function, base=RunBody, without=("trace",)), call)


def _faithfulness_curves(name: str = "faithfulness_curves") -> Endpoint:
    function = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        trace = context.run(body, gradients=_gradients(body.attribution.method))
        attribution = lensplorer.attribute(trace, **options(lensplorer.attribute, body.attribution))
        return function(trace, attribution, **options(function, body))

    return Endpoint(name, request_model(_title(name), function, base=RunBody, without=("trace",)), call)


def _attribution_agreement(name: str = "attribution_agreement") -> Endpoint:
    function = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        trace = context.run(body, gradients=_gradients(*(one.method for one in body.attributions)))
        attributions = [lensplorer.attribute(trace, **options(lensplorer.attribute, one)) for one in body.attributions]
        return function(trace, attributions, **options(function, body))

    return Endpoint(name, request_model(_title(name), function, base=RunBody, without=("trace",)), call)


def _confirm_patching(name: str = "confirm_patching") -> Endpoint:
    function = REGISTRY[name]
    body = request_model(_title(name), function, base=_WithHook, runs={"clean": RunBody, "corrupt": RunBody}, without=("estimate",))

    def call(context: Context, body: Any) -> xr.Dataset:
        clean, corrupt = context.run(body.clean), context.run(body.corrupt)
        given = options(function, body)
        estimate = lensplorer.attribution_patching(clean, corrupt, body.hook, given["metric"])
        return function(estimate, clean, corrupt, **given)

    return Endpoint(name, body, call)


class _WithHook(Body):
    hook: Name


def _head_scores(name: str = "head_scores") -> Endpoint:
    function = REGISTRY[name]

    def call(context: Context, body: Any) -> xr.Dataset:
        given = options(function, body)
        return function(context.served.model, interventions=context.interventions(body.interventions), **given)

    return Endpoint(name, request_model(_title(name), function, base=Interventions, without=("model",)), call)


def _title(name: str) -> str:
    return "".join(map(str.capitalize, name.split("_"))) + "Request"


#: those that are made of another analysis' result, or of no run
_SPECIAL: dict[str, Callable[[], Endpoint]] = {
    "faithfulness_curves": _faithfulness_curves,
    "attribution_agreement": _attribution_agreement,
    "confirm_patching": _confirm_patching,
    "head_scores": _head_scores,
}


def endpoint(name: str) -> Endpoint:
    """The endpoint of an analysis, by what it is a function of: one run, two, or a run and SAEs.

    Raises:
        KeyError: one of its options has no type in ``requests.TYPES``.
    """
    if name in _SPECIAL:
        return _SPECIAL[name]()
    first, second, *_ = [*inspect.signature(REGISTRY[name]).parameters, ""]
    if (first, second) in (("trace_a", "trace_b"), ("clean", "corrupt")):
        return _of_two_runs(name, first, second)
    if second in ("sae", "saes"):
        return _of_saes(name, second)
    return _of_one_run(name)


def endpoints() -> list[Endpoint]:
    """One for each public analysis, in the order of ``lensplorer.__all__``."""
    for module in (
        "lensplorer.sampling.distribution",
        *(f"lensplorer.analyses.{found.name}" for found in iter_modules(lensplorer.analyses.__path__)),
    ):
        import_module(module)  # it registers its analyses
    return [endpoint(name) for name in lensplorer.__all__ if name in REGISTRY]
