"""Rows of a batch equal what the analyses give interactively; one prompt's error is its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lensplorer as lp
from lensplorer.batch.inputs import Record
from lensplorer.batch.plan import analyses, make_plan
from lensplorer.batch.runner import Runner
from lensplorer.formats.tables import table_of

TEXTS = ["Once upon a time there was a boy", "The capital of France is", "a", "When Mary and John went to the shop, John gave a book to", "3 + 4 ="]
RECORDS = [Record(at, {"prompt": text, "answer": " a", "name": f"row {at}"}) for at, text in enumerate(TEXTS)]

#: Options of the analyses that need some; those not here run on their defaults.
OPTIONS = {
    "residual_decomposition": [{"target": " a"}, {"target": {"predicted": True}, "versus": " the", "unit": "head"}],
    "component_attribution": [{"target": " a"}, {"target": {"predicted": True}, "versus": " the", "unit": "source"}],
    "qk_attribution": [{"layer": 2, "head": 1, "source": 0}],
    "contrast": [{"a": " a", "b": " the"}],
    "attribute": [
        {"target": {"column": "answer"}, "method": "occlusion"},
        {"target": {"predicted": True}, "method": "saliency"},
        {"target": " a", "method": "linear", "rule": "half"},
    ],
    "attribution_matrix": [{"start": 1, "method": "occlusion"}, {"start": 1, "method": "input_x_gradient"}],
    "verify_by_ablation": [{"target": " a"}],
    "next_token": [{"k": 5}],
    "logit_lens": [{"tokens": [" a", " the"], "top_k": 2}, {}],
}
#: SAEs have a test of their own; the map of head clusters takes half a minute to compile, and is of the patterns alone.
ELSEWHERE = ("head_clusters", "feature_activations", "feature_values", "splice_fidelity", "cross_layer_features")
PLAIN = [name for name in sorted(analyses()) if name not in ELSEWHERE]


def resolved(options, trace):
    found = {key: (" a" if value == {"column": "answer"} else value) for key, value in options.items()}
    return {key: int(trace.logits[-1].argmax()) if value == {"predicted": True} else value for key, value in found.items()}


def assert_same(table, expected):
    """Numbers within 1e-5 of the column's scale, everything else exactly."""
    assert len(table) == len(expected)
    for name in expected.columns:
        ours, theirs = table[name], expected[name]
        if pd.api.types.is_float_dtype(theirs.dtype):
            ours, theirs = ours.to_numpy(float), theirs.to_numpy(float)
            scale = max(1.0, np.nanmax(np.abs(theirs), initial=0, where=np.isfinite(theirs)))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
        elif pd.api.types.is_numeric_dtype(theirs.dtype):
            np.testing.assert_array_equal(ours.astype("Float64").fillna(-1), theirs.astype("Float64").fillna(-1), err_msg=name)
        else:
            assert ours.fillna("").tolist() == theirs.fillna("").tolist(), name


@pytest.mark.parametrize("name", PLAIN)
def test_every_analysis_gives_its_interactive_result(storyworld, name):
    for options in OPTIONS.get(name, [{}]):
        gradients = options.get("method") in ("saliency", "input_x_gradient")
        runner = Runner(make_plan([{"name": name, **options}], {"batch_tokens": 40}), model=storyworld)
        tables = runner.tables(runner.run(RECORDS))
        errors = tables["runs"].to_pandas()
        whole = tables[name].to_pandas() if name in tables else pd.DataFrame(columns=["prompt", "analysis"])
        for record in RECORDS:
            trace = lp.run_trace(storyworld, record.fields["prompt"], reads=None, gradients=gradients)
            try:
                expected = table_of(analyses()[name](trace, **resolved(options, trace)))
            except lp.LensplorerError as error:
                assert errors[errors["prompt"] == record.index].error.tolist() == [str(error)]
                continue
            assert errors[errors["prompt"] == record.index].error.isna().all()
            assert_same(whole[whole["prompt"] == record.index], expected)
        assert (whole.analysis == name).all() and whole["prompt"].is_monotonic_increasing


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom", "neox-parallel"])
def test_other_architectures_too(tiny_model, architecture):
    model = tiny_model(architecture)
    names = ["token_scores", "logit_lens", "residual_norms", "attention_influence"]
    runner = Runner(make_plan(names, {}), model=model)
    tables = runner.tables(runner.run(RECORDS))
    for name in names:
        whole = tables[name].to_pandas()
        for record in RECORDS:
            expected = table_of(analyses()[name](lp.run_trace(model, record.fields["prompt"])))
            assert_same(
                whole[whole["prompt"] == record.index].drop(columns="top_token_id", errors="ignore"),
                expected.drop(columns="top_token_id", errors="ignore"),
            )


def test_features_of_an_sae(storyworld):
    sae = {"folder": str(Path(lp.__file__).parent / "storyworld" / "data" / "saes" / "resid_2")}
    runner = Runner(make_plan([{"name": "feature_activations", "sae": sae, "k": 3, "labels": False}], {}), model=storyworld)
    tables = runner.tables(runner.run(RECORDS))
    assert not tables["runs"].to_pandas().error.notna().any(), tables["runs"].to_pandas().error.tolist()
    whole, loaded = tables["feature_activations"].to_pandas(), lp.load_sae(**sae)
    for record in RECORDS:
        trace = lp.run_trace(storyworld, record.fields["prompt"])
        expected = table_of(lp.feature_activations(trace, loaded, k=3, labels=False))
        found = whole[whole["prompt"] == record.index]
        np.testing.assert_allclose(found.activation.fillna(0), expected.activation.fillna(0), rtol=1e-4, atol=1e-4)


def test_one_prompts_error_is_its_own(storyworld):
    records = [
        Record(0, {"prompt": "Once upon a time", "answer": " a"}),
        Record(1, {"prompt": 5, "answer": " a"}),
        Record(2, {"other": "x"}),
        Record(3, {"prompt": "word " * 600, "answer": " a"}),
        Record(4, {"prompt": "a b", "answer": "not one token"}),
        Record(5, {"prompt": [1, 10**9], "answer": " a"}),
        Record(6, {"prompt": [{"role": "user", "content": "Hello"}]}),
        Record(7, {"prompt": [0, 1556], "answer": 629}),
    ]
    plan = make_plan(["token_scores", {"name": "attribute", "target": {"column": "answer"}, "method": "occlusion"}], {"id_column": "answer"})
    runner = Runner(plan, model=storyworld)
    tables = runner.tables(runner.run(records))
    prompts, runs = tables["prompts"].to_pandas(), tables["runs"].to_pandas()
    assert prompts.error.notna().tolist() == [False, True, True, True, False, True, False, False]
    said = dict(zip(zip(runs["prompt"], runs.analysis), runs.error))
    assert len(said) == 16 and "not int" in said[1, "token_scores"] and "no prompt" in said[2, "attribute"]
    assert "600" in said[3, "token_scores"] or "context" in said[3, "token_scores"]
    assert "outside the vocabulary" in said[5, "token_scores"]
    assert pd.isna(said[4, "token_scores"]) and "exactly one is expected" in said[4, "attribute"]
    assert "nothing in the column 'answer'" in said[6, "attribute"]
    assert sorted(set(tables["token_scores"]["prompt"].to_pylist())) == [0, 4, 6, 7]
    assert sorted(set(tables["attribute"]["prompt"].to_pylist())) == [0, 7]
    assert prompts.id.fillna("").tolist() == [" a", " a", "", " a", "not one token", " a", "", "629"]


def test_all_prompts_failing_leaves_no_table(storyworld):
    runner = Runner(make_plan(["token_scores"], {}), model=storyworld)
    tables = runner.tables(runner.run([Record(0, {"prompt": 5})]))
    assert sorted(tables) == ["prompts", "runs"] and tables["runs"].num_rows == 1


def test_a_pass_that_does_not_fit_is_run_one_by_one(storyworld, monkeypatch, caplog):
    from lensplorer.batch import forward

    plan, run_model = make_plan(["token_scores"], {}), forward.run_model
    runner = Runner(plan, model=storyworld)
    expected = runner.tables(runner.run(RECORDS))["token_scores"]

    def short_of_memory(model, tokens, **options):
        if len(tokens) > 1:
            raise RuntimeError("not enough memory: you tried to allocate 1 TB")
        return run_model(model, tokens, **options)

    monkeypatch.setattr(forward, "run_model", short_of_memory)
    with caplog.at_level("WARNING"):
        found = runner.tables(runner.run(RECORDS))["token_scores"]
    assert "one by one" in caplog.text
    assert_same(found.to_pandas(), expected.to_pandas())


def test_generation_is_greedy_and_its_matrix_becomes_tokenlens(storyworld):
    plan = make_plan([{"name": "attribution_matrix", "method": "occlusion"}], {"max_new_tokens": 3, "tokenlens": True})
    jobs = Runner(plan, model=storyworld).run(RECORDS[:2], timestamp="2026-01-01T00:00:00+00:00")
    for job in jobs:
        ids = job.ids[: job.start]
        for token_id in job.ids[job.start :]:
            assert int(lp.run_trace(storyworld, ids).logits[-1].argmax()) == token_id
            ids = [*ids, token_id]
        document = job.documents["attribution_matrix"]
        assert [token["token_id"] for token in document["data"]["output_tokens"]] == job.ids[job.start :]
        assert document["metadata"]["prompt"] == job.record.fields["prompt"]
        assert document["metadata"]["generation_params"] == {"max_new_tokens": 3, "temperature": 0.0}
        assert document["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"
        expected = lp.attribution_matrix(lp.run_trace(storyworld, job.ids), job.start, method="occlusion")
        np.testing.assert_allclose(document["data"]["association_matrix"], expected.attribution.values, atol=1e-4)


def test_a_completion_counts_as_generated(storyworld):
    records = [Record(0, {"prompt": "Once upon a", "answer": " time there"}), Record(1, {"prompt": "Once", "answer": ""})]
    plan = make_plan([{"name": "attribution_matrix", "method": "occlusion"}], {"completion_column": "answer"})
    runner = Runner(plan, model=storyworld)
    first, second = runner.run(records)
    assert [*lp.run_trace(storyworld, first.ids).token_texts[first.start :]] == [" time", " there"] and "no text" in second.error
    attrs = json.loads(runner.tables([first])["runs"].to_pandas().attributes[0])
    assert attrs["start"] == first.start and attrs["method"] == "occlusion" and "model" not in attrs


def test_a_changed_weight_changes_the_fingerprint(tiny_model):
    import torch

    runner = Runner(make_plan(["token_scores"], {}), model=tiny_model("gpt2"))
    before, weight = runner.fingerprint(), next(runner.model.parameters())
    assert runner.fingerprint() == before
    with torch.no_grad():
        weight.view(-1)[0] += 1
        changed = runner.fingerprint()
        weight.view(-1)[0] -= 1
    assert changed != before
