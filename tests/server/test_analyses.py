"""One endpoint per analysis: each gives what the library gives, as JSON."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

import lensplorer as lp
from lensplorer.analyses.base import REGISTRY
from lensplorer.interventions.saving import to_dict
from lensplorer.server.analyses import SAEs, endpoints
from lensplorer.server.limits import TooLarge
from lensplorer.server.requests import SAEBody
from lensplorer.server.results import to_json
from lensplorer.server.settings import ServerSettings

PROMPT = "The capital of France is"
PAIR = {"clean": {"prompt": PROMPT}, "corrupt": {"prompt": "The capital of Norway is"}, "metric": {"target": " Paris", "versus": " Oslo"}}
SAE = {"release": "storyworld", "sae_id": "resid_2"}


def sae():
    return lp.load_sae("storyworld", "resid_2")


def attributed(trace, method):
    return lp.attribute(trace, " Paris", method=method)


#: analysis → a request, and the same as a call of the library on a trace that read everything, with gradients
CASES = {
    "token_scores": ({"temperature": 0.5}, lambda t: lp.token_scores(t, temperature=0.5)),
    "next_token": ({"k": 5, "position": 2, "search": "a"}, lambda t: lp.next_token(t, k=5, position=2, search="a")),
    "logit_lens": ({"tokens": [" Paris", 5], "top_k": 2}, lambda t: lp.logit_lens(t, tokens=[" Paris", 5], top_k=2)),
    "contrast": ({"a": " Paris", "b": " Oslo"}, lambda t: lp.contrast(t, " Paris", " Oslo")),
    "residual_norms": ({}, lp.residual_norms),
    "residual_decomposition": ({"target": " Paris", "unit": "head"}, lambda t: lp.residual_decomposition(t, " Paris", unit="head")),
    "component_attribution": (
        {"target": " Paris", "versus": " Oslo", "unit": "head", "rule": "half"},
        lambda t: lp.component_attribution(t, " Paris", versus=" Oslo", unit="head", rule="half"),
    ),
    "token_similarity": ({"position": 1}, lambda t: lp.token_similarity(t, position=1)),
    "hidden_similarity": ({}, lp.hidden_similarity),
    "attention_patterns": ({}, lp.attention_patterns),
    "attention_influence": (
        {"top_heads": 3, "value_weighted": True},
        lambda t: lp.attention_influence(t, top_heads=3, value_weighted=True),
    ),
    "attention_by_layer": ({"position": 3}, lambda t: lp.attention_by_layer(t, position=3)),
    "attention_rollout": ({}, lp.attention_rollout),
    "head_statistics": ({"exclude_first": False}, lambda t: lp.head_statistics(t, exclude_first=False)),
    "qk_attribution": (
        {"layer": 2, "head": 2, "source": 3, "query": 4},
        lambda t: lp.qk_attribution(t, layer=2, head=2, source=3, query=4),
    ),
    "head_scores": ({"batch": 2, "length": 12, "prompt": None}, lambda t: lp.head_scores(t.model, batch=2, length=12)),
    "head_clusters": ({"n_clusters": 1, "position": 0}, lambda t: lp.head_clusters(t, n_clusters=1, position=0)),  # no UMAP: it takes long
    "attribute": ({"target": " Paris", "method": "saliency"}, lambda t: attributed(t, "saliency")),
    "attribution_matrix": ({"start": 3, "method": "occlusion"}, lambda t: lp.attribution_matrix(t, 3, method="occlusion")),
    "faithfulness_curves": (
        {"attribution": {"target": " Paris", "method": "input_x_gradient"}, "n_random": 2},
        lambda t: lp.faithfulness_curves(t, attributed(t, "input_x_gradient"), n_random=2),
    ),
    "attribution_agreement": (
        {"attributions": [{"target": " Paris", "method": "occlusion"}, {"target": " Paris", "method": "saliency"}], "top_k": 3},
        lambda t: lp.attribution_agreement(t, [attributed(t, "occlusion"), attributed(t, "saliency")], top_k=3),
    ),
    "feature_activations": ({"sae": SAE, "k": 3}, lambda t: lp.feature_activations(t, sae(), k=3)),
    "feature_values": ({"sae": SAE, "features": [3, 5]}, lambda t: lp.feature_values(t, sae(), [3, 5])),
    "splice_fidelity": ({"sae": SAE, "error_term": True}, lambda t: lp.splice_fidelity(t, sae(), error_term=True)),
    "cross_layer_features": (
        {"saes": [{**SAE, "sae_id": "resid_1"}, SAE], "k": 4},
        lambda t: lp.cross_layer_features(t, [lp.load_sae("storyworld", "resid_1"), sae()], k=4),
    ),
    "verify_by_ablation": (
        {"target": " Paris", "contribution": "total"},
        lambda t: lp.verify_by_ablation(t, " Paris", contribution="total"),
    ),
    "sampling_distribution": (
        {"k": 4, "n_prompt": 3, "params": {"temperature": 0.9, "presence_penalty": 0.5}},
        lambda t: lp.sampling_distribution(t, k=4, n_prompt=3, params=lp.DecodingParams(temperature=0.9, presence_penalty=0.5, seed=None)),
    ),
}
PAIRS = {
    "compare": ({"align_by": "position"}, ("trace_a", "trace_b"), lambda a, b: lp.compare(a, b, align_by="position")),
    "next_token_change": ({"k": 3}, ("trace_a", "trace_b"), lambda a, b: lp.next_token_change(a, b, k=3)),
    "activation_patching": (
        {"hook": "mlp_out", "metric": PAIR["metric"]},
        ("clean", "corrupt"),
        lambda a, b: lp.activation_patching(a, b, "mlp_out", (" Paris", " Oslo")),
    ),
    "attribution_patching": (
        {"hook": "z", "metric": {"target": " Paris", "log_prob": True}, "gradients": "linear"},
        ("clean", "corrupt"),
        lambda a, b: lp.attribution_patching(a, b, "z", lp.log_prob(" Paris"), gradients="linear"),
    ),
    "confirm_patching": (
        {"hook": "z", "metric": PAIR["metric"], "top": 3},
        ("clean", "corrupt"),
        lambda a, b: lp.confirm_patching(lp.attribution_patching(a, b, "z", (" Paris", " Oslo")), a, b, (" Paris", " Oslo"), top=3),
    ),
}


def dataset(content):
    return xr.Dataset.from_dict({**content, "data_vars": content["variables"]})


def assert_same(content, expected):
    """The JSON holds every dimension, coordinate, variable and attribute of the result, and the same values; null stands for NaN."""
    assert_as_xarray_makes_it(expected)
    assert set(content) == {"dims", "coords", "variables", "attrs"}
    assert content["dims"] == dict(expected.sizes)
    found = dataset(content)
    assert set(found.variables) == set(expected.variables) and list(found.attrs) == list(expected.attrs)
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims and found[name].attrs == variable.attrs, name
        if variable.dtype.kind == "f":
            np.testing.assert_allclose(found[name].values.astype(float), variable.values, atol=1e-5, rtol=1e-4, err_msg=name)
        elif variable.dtype.kind in "iub":
            assert found[name].values.tolist() == variable.values.tolist(), name
        else:
            assert [str(x) for x in np.ravel(found[name].values)] == [str(x) for x in np.ravel(variable.values)], name
    for name, value in expected.attrs.items():
        if isinstance(value, float):
            assert found.attrs[name] is None if not math.isfinite(value) else found.attrs[name] == pytest.approx(value, abs=1e-4), name
        else:
            assert found.attrs[name] == value, name


def assert_as_xarray_makes_it(result):
    """The short way to a result gives what xarray's constructor gives, indexes included."""
    coords = {name: (coord.dims, coord.values) for name, coord in result.coords.items()}
    made = xr.Dataset({name: (v.dims, v.values, v.attrs) for name, v in result.data_vars.items()}, coords, dict(result.attrs))
    assert made.identical(result)
    assert {name: (type(i), i.dtype) for name, i in made.indexes.items()} == {name: (type(i), i.dtype) for name, i in result.indexes.items()}
    assert {name: type(v) for name, v in made.variables.items()} == {name: type(v) for name, v in result.variables.items()}
    for dim in result.indexes:
        xr.testing.assert_identical(made.isel({dim: [-1, 0]}), result.sel({dim: result[dim].values[[-1, 0]]}))


@pytest.fixture(scope="module")
def trace(storyworld):
    return lp.run_trace(storyworld, PROMPT, gradients=True)


def test_there_is_one_for_each_public_analysis(client):
    public = {name for name in lp.__all__ if name in REGISTRY}
    assert {endpoint.name for endpoint in endpoints()} == public == set(CASES) | set(PAIRS) == set(client.get("/api/analyses").json())
    from importlib import import_module

    for module in lp._PUBLIC:
        import_module(module)
    assert {name for name in lp.__all__ if name in REGISTRY} == public, "an analysis is registered where the server does not look"


@pytest.mark.parametrize("name", CASES)
def test_of_one_run(client, trace, name):
    body, call = CASES[name]
    body = {key: value for key, value in {"prompt": PROMPT, **body}.items() if value is not None}
    response = client.post(f"/api/analyses/{name}", json=body)
    assert response.status_code == 200, response.text
    assert_same(response.json(), call(trace))


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_runs(client, storyworld, name):
    body, sides, call = PAIRS[name]
    response = client.post(f"/api/analyses/{name}", json={**body, sides[0]: PAIR["clean"], sides[1]: PAIR["corrupt"]})
    assert response.status_code == 200, response.text
    assert_same(response.json(), call(*(lp.run_trace(storyworld, PAIR[side]["prompt"]) for side in ("clean", "corrupt"))))


def test_prompts_of_every_kind_and_interventions(client, storyworld):
    chat = [{"role": "user", "content": "Hello"}]
    changed = lp.ablate_mlp(1)
    for prompt, options in (([0, 5, 6], {}), (chat, {}), ("Once", {"prepend_bos": False}), ("Once", {"interventions": [to_dict(changed)]})):
        response = client.post("/api/analyses/token_scores", json={"prompt": prompt, **options})
        assert response.status_code == 200, response.text
        made = {**options, "interventions": [changed]} if "interventions" in options else options
        assert_same(response.json(), lp.token_scores(lp.run_trace(storyworld, prompt, **made)))


@pytest.mark.parametrize(
    ("name", "body", "status", "said"),
    [
        ("token_scores", {"prompt": ""}, 200, ""),
        ("token_scores", {}, 422, "prompt"),
        ("token_scores", {"prompt": "a", "layer": 3}, 422, "layer"),
        ("token_scores", {"prompt": [1793]}, 400, "0 to 1792"),
        ("token_scores", {"prompt": [5] * 513}, 400, "512"),
        ("token_scores", {"prompt": "a", "temperature": 0}, 422, "temperature"),
        ("next_token", {"prompt": "a", "position": 7}, 400, "outside the prompt"),
        ("next_token", {"prompt": "a", "k": 201}, 422, "200"),
        ("attribute", {"prompt": "a", "target": " Paris Oslo"}, 400, "exactly one"),
        ("attribute", {"prompt": "a", "target": " Paris", "method": "salience"}, 400, "saliency"),
        ("attribute", {"prompt": "a", "target": " Paris", "max_steps": 10**9}, 422, "max_steps"),
        ("nonsense", {"prompt": "a"}, 404, "Not Found"),
        ("feature_activations", {"prompt": "a", "sae": {**SAE, "sae_id": "../../x"}}, 400, "resid_1"),
        ("token_scores", {"prompt": "a", "interventions": [{"kind": "Ablation"}]}, 400, "damaged"),
        ("token_scores", {"prompt": "a", "interventions": [{"kind": "eval"}]}, 400, "eval"),
        ("activation_patching", {**PAIR, "hook": "mlp_out", "clean": {"prompt": "Two more tokens here"}}, 400, "token"),
        ("token_scores", {"prompt": [{"role": "user"}]}, 422, "content"),
    ],
)
def test_what_is_wrong_is_said(client, name, body, status, said):
    response = client.post(f"/api/analyses/{name}", json=body)
    assert response.status_code == status and said in response.text, response.text
    assert status == 200 or set(response.json()) == {"detail"}


def test_a_result_too_large_is_refused(serving, storyworld):
    small = serving(max_values=100)
    assert small.post("/api/analyses/token_scores", json={"prompt": "Once"}).status_code == 200
    assert small.post("/api/analyses/attention_patterns", json={"prompt": PROMPT}).status_code == 413


def test_json_has_no_nan():
    result = xr.Dataset(
        {"x": ("i", np.array([1.5, np.nan, np.inf], np.float32)), "n": ("i", [1, 2, 3])}, attrs={"analysis": "a", "gap": np.nan, "k": 2}
    )
    assert to_json(result, max_values=6) == (
        b'{"dims":{"i":3},"coords":{},"variables":{"x":{"dims":["i"],"data":[1.5,null,null],"attrs":{}},'
        b'"n":{"dims":["i"],"data":[1,2,3],"attrs":{}}},"attrs":{"analysis":"a","gap":null,"k":2}}'
    )
    with pytest.raises(TooLarge, match="6 values"):
        to_json(result, max_values=5)


def test_saes_are_kept_and_only_built_in_ones_load_elsewhere():
    calls = []
    saes = SAEs(ServerSettings(), load=lambda *args, **options: calls.append(args) or object())
    bodies = [SAEBody(release="r", sae_id=str(number)) for number in range(6)]
    assert saes.get(bodies[0], "cpu") is saes.get(bodies[0], "cpu")
    for body in bodies:
        saes.get(body, "cpu")
    assert calls == [("r", str(number)) for number in range(6)] and len(saes._kept) == 4
    elsewhere = SAEs(ServerSettings(address="0.0.0.0", token="x" * 16), load=lambda *args, **options: args)
    assert elsewhere.get(SAEBody(**SAE), "cpu") == ("storyworld", "resid_2")
    for body in (bodies[0], SAEBody(release="storyworld", sae_id="../x"), SAEBody(release="/srv/sae", sae_id="x")):
        with pytest.raises(lp.LensplorerError, match="may not be loaded"):
            elsewhere.get(body, "cpu")
