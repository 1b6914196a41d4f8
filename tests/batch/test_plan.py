"""What may be asked for, and that everything else is refused before anything runs."""

from __future__ import annotations

import json

import pytest

from lensplorer.batch.plan import Plan, analyses, load_plan_file, make_plan, parse_setting
from lensplorer.errors import ConfigError


def test_analyses_of_one_trace_can_be_asked_for():
    assert {"token_scores", "logit_lens", "attribute", "attribution_matrix", "feature_activations", "residual_decomposition"} <= set(analyses())
    assert not {"compare", "activation_patching", "head_scores", "faithfulness_curves"} & set(analyses())


def test_a_plan_from_toml_flags_and_settings(tmp_path):
    path = tmp_path / "batch.toml"
    path.write_text(
        '[batch]\nmodel = "gpt2"\npart_size = 7\n[[analysis]]\nname = "attribute"\nlabel = "saliency"\nmethod = "saliency"\n'
        'target = {column = "answer"}\n[[analysis]]\nname = "attribute"\ntarget = {predicted = true}\n'
    )
    batch, tables = load_plan_file(path)
    plan = make_plan([*tables, "logit_lens"], batch, [parse_setting("logit_lens.top_k=2"), parse_setting("saliency.objective=prob")])
    assert plan.model == "gpt2" and plan.part_size == 7
    assert [request.label for request in plan.requests] == ["saliency", "attribute", "logit_lens"]
    assert plan.requests[0].options == {"method": "saliency", "target": {"column": "answer"}, "objective": "prob"}
    assert plan.requests[2].options == {"top_k": 2}
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_tokenlens_asks_for_the_matrix():
    assert [request.name for request in make_plan([], {"tokenlens": True, "max_new_tokens": 3}).requests] == ["attribution_matrix"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ('[1, " a"]', [1, " a"]),
        (" Paris", " Paris"),
        ('"@at"', "@at"),
        ("@answer", {"column": "answer"}),
        ("@predicted", {"predicted": True}),
        ("a=b", "a=b"),
        ("", ""),
        ("@", "@"),
        ('{folder = "x"}', {"folder": "x"}),
    ],
)
def test_settings(text, value):
    assert parse_setting(f"a.b={text}") == ("a", "b", value)


BAD = {
    "nothing": ([], {}, [], "No analysis"),
    "unknown": (["token_scors"], {}, [], "'token_scores'"),
    "of two traces": (["compare"], {}, [], "no analysis 'compare' for batches"),
    "no name": ([{"label": "x"}], {}, [], "needs a name"),
    "unknown option": ([{"name": "logit_lens", "top": 3}], {}, [], "'top_k'"),
    "not plain": ([{"name": "feature_activations", "sae": {}, "cache": 1}], {}, [], "no option 'cache'"),
    "missing": (["attribute"], {}, [], r"needs target: --set attribute\.target=VALUE"),
    "missing start": (["attribution_matrix"], {}, [], "--max-new-tokens"),
    "twice": (["token_scores", "token_scores"], {}, [], "label = 'token_scores_2'"),
    "reserved": ([{"name": "token_scores", "label": "runs"}], {}, [], "'runs' cannot be a label"),
    "a path": ([{"name": "token_scores", "label": "../x"}], {}, [], "cannot be a label"),
    "a number": ([{"name": "token_scores", "label": 3}], {}, [], "must be a text"),
    "a table": ([{"name": "attribute", "target": {"col": "x"}}], {}, [], "column = NAME"),
    "set of nothing": (["token_scores"], {}, [("logit_lens", "top_k", 1)], "no analysis 'logit_lens' is asked for"),
    "batch option": (["token_scores"], {"modle": "x"}, [], "'model'"),
    "kind": (["token_scores"], {"part_size": "x"}, [], "part_size must be int"),
    "range": (["token_scores"], {"part_size": 0}, [], "at least 1"),
    "bool": (["token_scores"], {"max_new_tokens": True}, [], "must be int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_refused(case):
    tables, options, settings, said = BAD[case]
    with pytest.raises(ConfigError, match=said):
        make_plan(tables, options, settings)


@pytest.mark.parametrize("text", ["logit_lens", "logit_lens.top_k", "top_k=3", ".top_k=3", "logit_lens.=3"])
def test_a_setting_of_another_form(text):
    with pytest.raises(ConfigError, match=r"expected ANALYSIS\.OPTION=VALUE"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[batch", "not valid TOML"),
        ("[bach]\nmodel = 'x'", "'batch'"),
        ("[batch]\nmodle = 'x'", "'model'"),
        ("[analysis]\nname = 'x'", "double brackets"),
        ("analysis = ['x']", "double brackets"),
    ],
)
def test_a_file_of_another_form(tmp_path, content, said):
    (tmp_path / "batch.toml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_plan_file(tmp_path / "batch.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan_file(tmp_path / "nowhere.toml")
