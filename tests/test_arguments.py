"""Every public function, given the wrong kind of thing in each of its places, says what it wants there."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import lensplorer as lp
from lensplorer.arguments import _kinds_of, describe, expects
from lensplorer.errors import ArgumentError, LensplorerError

#: Records that lensplorer makes and a reader only reads, a protocol, and the base of all errors.
NOT_CALLED = {"ModelInfo", "Trace", "LensModel", "LensplorerError", "Attributions"}
PUBLIC = [name for name in lp.__all__ if name not in NOT_CALLED]


def placed(name: str) -> list[str]:
    """The parameters that may be given by place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [each.name for each in inspect.signature(getattr(lp, name)).parameters.values() if each.kind in kinds]


PLACES = [(name, parameter) for name in PUBLIC for parameter in placed(name)]


@pytest.fixture(scope="module")
def things(storyworld) -> dict[str, Any]:
    """One of each kind."""
    trace = lp.run_trace(storyworld, "Once upon a time")
    return {
        "a model": storyworld,
        "a trace": trace,
        "an SAE": lp.load_sae("storyworld", "resid_2"),
        "a text": "Once upon a time",
        "a path": Path("/nowhere/at/all.csv"),
        "None": None,
        "a number": 3.5,
        "a whole number": 10**6,
        "a list of traces": [trace],
        "a list of numbers": [0.5, 1.5],
        "a table": {"a": 1},
        "scores": lp.token_scores(trace),
        "bytes": b"abc",
        "an object": object(),
        "a class": dict,
    }


@pytest.fixture(scope="module")
def right(things) -> dict[str, list[Any]]:
    """What each function takes by place."""
    model, trace, sae = things["a model"], things["a trace"], things["an SAE"]
    matrix = lp.attribution_matrix(trace, 3, method="occlusion")
    attribution = lp.attribute(trace, " a")
    other = lp.run_trace(model, [*trace.tokens.tolist()[:-1], 41])
    estimate = lp.attribution_patching(trace, other, "z", (" a", " the"))
    known = {
        "load_model": ["storyworld"],
        "run_trace": [model, "Once"],
        "Session": [model, "Once"],
        "contrast": [trace, " a", " the"],
        "attribution_matrix": [trace, 3],
        "faithfulness_curves": [trace, attribution],
        "attribution_agreement": [trace, [attribution, attribution]],
        "feature_values": [trace, sae, [1]],
        "cross_layer_features": [trace, [sae, sae]],
        "load_sae": ["storyworld", "resid_2"],
        "load_sae_config": [Path(__file__).parents[1] / "sae_configs" / "nothing.toml"],
        "search_saes": ["gpt2"],
        "sae_reads": [model, [sae]],
        "feature_labels": [model, sae, [1]],
        "ablate": ["blocks.0.hook_mlp_out"],
        "ablate_head": [0, 1],
        "ablate_position": [1],
        "clamp_feature": [sae, 1, 1.0],
        "scale_feature": [sae, 1, 1.0],
        "ablate_feature": [sae, 1],
        "feature_direction": [sae, 1],
        "knock_out_attention": [0, 1, 1, 2],
        "patch": ["blocks.0.hook_mlp_out", trace],
        "scale": ["blocks.0.hook_mlp_out", 2.0],
        "steer": [[1.0] * 128, 1, 1.0],
        "logit_difference": [" a", " the"],
        "log_prob": [" a"],
        "activation_patching": [trace, other, "z", (" a", " the")],
        "attribution_patching": [trace, other, "z", (" a", " the")],
        "confirm_patching": [estimate, trace, other, (" a", " the")],
        "DecodingParams": [0.7, 0, 0.8, 0.0, 1.0, 0.0, 0.0, False, 0, ()],
        "Constraint": ["regex", "[a-z]+"],
        "Reading": ["blocks.0.hook_mlp_out", trace["blocks.0.hook_mlp_out"][-1], -1, None],
        "attributions": [trace, matrix],
        "export_table": [things["scores"], "/nowhere/at/all.csv"],
        "export_figure": [things["scores"], "/nowhere/at/all.html"],
        "write_tokenlens": ["/nowhere/at/all.json", lp.attributions(trace, matrix)],
        "write_inseq": ["/nowhere/at/all.json", lp.attributions(trace, matrix)],
        "run_batch": ["/nowhere/at/all.jsonl", "/nowhere/at/out"],
    }
    usual = {
        "model": model, "trace": trace, "trace_a": trace, "trace_b": other, "sae": sae, "target": " a", "layer": 0, "path": "/nowhere/at/all.json",
        "result": things["scores"], "result_a": things["scores"], "result_b": things["scores"],
    }  # fmt: skip
    return {name: known.get(name) or [usual[parameter] for parameter in placed(name)] for name in PUBLIC}


@pytest.mark.parametrize(("name", "parameter"), PLACES)
def test_the_wrong_kind_is_told_what_is_wanted(name, parameter, things, right):
    """A kind that the annotation excludes is refused by the name of the parameter; one that it admits may be wrong in another way, said likewise."""
    function, at = getattr(lp, name), placed(name).index(parameter)
    options = {"run_batch": {"analyses": ["token_scores"]}, "qk_attribution": {"layer": 1, "head": 0, "source": 0}}.get(name, {})
    annotation = inspect.signature(function).parameters[parameter].annotation
    kinds = _kinds_of(annotation)
    assert kinds is not None, f"{name}: nothing is known of {annotation!r}"
    n_refused = 0
    for what, thing in things.items():
        given = [*right[name][:at], thing, *right[name][at + 1 :]]
        admitted = any(kind.fits(thing) for kind in kinds)
        if admitted and (name in ("load_model", "Session", "visualize", "export_figure") or name.startswith(("read_", "write_", "activation_"))):
            continue  # what a name or path leads to is tested elsewhere
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(*given, **options)
            except LensplorerError as error:
                said = str(error)
            else:
                assert admitted, f"{name} took {what} as {parameter}"
                continue
        if not admitted:
            n_refused += 1
            assert parameter in said, f"{name}: {said}"
    assert n_refused >= 3


def test_a_sentence_says_what_how_and_what_was_given(things):
    said = "token_scores wants a trace as trace (run_trace(model, prompt) makes one), and was given the text 'Once upon a time'."
    with pytest.raises(ArgumentError, match=f"^{re.escape(said)}$"):
        lp.token_scores("Once upon a time")
    with pytest.raises(TypeError, match=r"compare wants a trace as trace_b .* and was given a model"):
        lp.compare(things["a trace"], trace_b=things["a model"])
    with pytest.raises(ArgumentError, match=r"as interventions .*, and was given a list of 1 \(the first the text 'ablate'\)"):
        lp.run_trace(things["a model"], "Once", interventions=["ablate"])
    with pytest.raises(ArgumentError, match=r"given a list of 1 \(the first a trace\)"):
        lp.attribution_agreement(things["a trace"], [things["a trace"]])


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda t, r: lp.faithfulness_curves(t, r), "Expected a result of attribute"),
        (lambda t, r: lp.attribution_agreement(t, [r, r]), "Expected a result of attribute"),
        (lambda t, r: lp.confirm_patching(r, t, t, " a"), "takes a result of attribution_patching"),
        (lambda t, r: lp.attributions(t, r), "holds a result of attribution_matrix"),
        (lambda t, r: lp.difference(r, lp.residual_norms(t)), "between two results of one analysis"),
        (lambda t, r: lp.difference(r, r, aligned=r), "result of compare"),
        (lambda t, r: lp.draw(r.drop_attrs()), "There is no view for"),
    ],
)
def test_the_result_of_another_analysis_is_told_so(ask, said, things):
    with pytest.raises(LensplorerError, match=said):
        ask(things["a trace"], things["scores"])


def test_a_trace_is_read_by_name(things):
    with pytest.raises(LensplorerError, match="read by the name of an activation"):
        things["a trace"][0]


def test_what_is_right_goes_through_untouched():
    @expects
    def function(*hooks: str, k: int | None = None, values: Any = None, listed: list[int] = []) -> Any:  # noqa: B006
        return hooks, k, values, listed

    numbers = iter([1, 2])
    assert function("a", "b", k=3, values=object, listed=numbers)[3] is numbers and next(numbers) == 1
    with pytest.raises(ArgumentError, match="wants a text as hooks"):
        function("a", 5)
    with pytest.raises(ArgumentError, match="wants a whole number as k, and was given a number"):
        function(k=3.5)


def test_descriptions_are_short():
    assert describe("x" * 100) == f"the text {'x' * 39 + '…'!r}"
    assert describe([]) == "a list of 0"
