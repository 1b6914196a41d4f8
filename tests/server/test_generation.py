"""The endpoints of the next-token visualization: its README's requests, every field it names, and the library's values."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lensplorer as lp
from lensplorer.sampling.params import DecodingParams
from lensplorer.session import PromptState, State
from lensplorer.trace import prompt_ids

CHAT = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "The capital of France is"}]

#: as in that program's README
PARAMS = {
    "greedy": False,
    "temperature": 0.7,
    "top_p": 0.8,
    "repetition_penalty": 1.05,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop_sequences": [],
}
PREVIEW = {
    "branch_id": "default",
    "prompt": "The capital of France is",
    "system_prompt": "You are a helpful assistant.",
    "use_chat_template": True,
    "completion_ids": [],
    "top_k": 10,
    "params": PARAMS,
    "constraint": {"enabled": False, "type": "multiple_choice", "schema": "Yes\nNo\nMaybe"},
}
STEP = {**PREVIEW, "reset_rng": False, "force_token_id": None, "force_text": None}
ATTRIBUTION = {
    "branch_id": "default",
    "prompt": "The capital of France is",
    "system_prompt": "You are a helpful assistant.",
    "use_chat_template": True,
    "completion_ids": [1664, 271],
    "target_index": 1,
    "target_token_id": 271,
    "method": "attention",
}
MODEL = {"model_id", "device", "dtype", "has_chat_template", "eos_token_id", "vocab_size"}
PILL = {"id", "text", "display", "special"}
DISTRIBUTION = {"top_k", "tokens", "other_p_base", "other_p_final", "kept_token_count", "constraint_active", "constraint_type"}
META = {"dist", "selected_id", "forced", "forced_by"}


def answer(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client, path, body, status=400):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"} and "Traceback" not in response.text
    return response.json()["detail"]


def test_status_has_the_fields_of_that_program(client):
    status = client.get("/api/model/status").json()
    assert MODEL | {"loading", "ready", "error"} <= set(status)
    assert (status["model_id"], status["ready"], status["loading"], status["error"]) == ("storyworld", True, False, None)
    assert status["vocab_size"] == 1793 and status["has_chat_template"] and status["eos_token_id"] == 0


def test_preview_as_in_the_readme(client, storyworld):
    shown = answer(client, "/api/preview", PREVIEW)
    assert set(shown) == {"model", "prompt_tokens", "completion_tokens", "context_token_count", "dist"}
    assert set(shown["model"]) == MODEL and set(shown["dist"]) == DISTRIBUTION
    assert all(set(token) == PILL for token in shown["prompt_tokens"])
    assert all(set(token) == PILL | {"p_base", "p_final", "kept", "valid"} for token in shown["dist"]["tokens"])
    assert [token["id"] for token in shown["prompt_tokens"]] == prompt_ids(storyworld, CHAT)
    assert shown["context_token_count"] == len(shown["prompt_tokens"]) and shown["completion_tokens"] == []
    assert shown["prompt_tokens"][0]["special"] and not shown["prompt_tokens"][5]["special"]


@pytest.mark.parametrize("chat", [True, False, None])
@pytest.mark.parametrize("completion", [[], [1664, 629]])
def test_distribution_is_the_librarys(client, storyworld, chat, completion):
    params = {**PARAMS, "temperature": 1.3, "top_p": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.2}
    shown = answer(client, "/api/preview", {**PREVIEW, "params": params, "use_chat_template": chat, "completion_ids": completion})["dist"]
    ids = [*prompt_ids(storyworld, PREVIEW["prompt"] if chat is False else CHAT), *completion]
    trace = lp.run_trace(storyworld, ids, reads=[])
    full = lp.sampling_distribution(trace, params=DecodingParams.from_dict(params), k=1793, n_prompt=len(ids) - len(completion))
    row = {int(token): index for index, token in enumerate(full.token_id)}
    for token in shown["tokens"]:
        at = full.isel(candidate=row[token["id"]])
        assert token["p_base"] == pytest.approx(float(at.p_base), abs=1e-5) and token["p_final"] == pytest.approx(float(at.p_final), abs=1e-5)
        assert token["kept"] == bool(at.kept) and token["valid"] and token["text"] == str(at.token.values)
    assert shown["kept_token_count"] == int(full.kept.sum())
    assert shown["other_p_base"] == pytest.approx(1 - sum(token["p_base"] for token in shown["tokens"]), abs=1e-6)
    # the most likely before anything is excluded, in order
    tempered = full.p.sel(stage="temperature").values
    expected = full.token_id.values[np.argsort(-tempered, kind="stable")[:10]]
    assert [token["id"] for token in shown["tokens"]] == expected.tolist()


def test_step_as_in_the_readme(client):
    step = answer(client, "/api/step", STEP)
    assert set(step) == {"model", "dist", "selected", "appended", "appended_meta", "new_completion_ids", "done", "stop_reason"}
    assert set(step["selected"]) == {"id", "text", "display", "p_final"} and set(step["appended_meta"][0]) == META
    assert step["new_completion_ids"] == [step["selected"]["id"]] == [token["id"] for token in step["appended"]]
    assert step["dist"] == step["appended_meta"][0]["dist"] == answer(client, "/api/preview", PREVIEW)["dist"]
    assert not step["appended_meta"][0]["forced"] and step["appended_meta"][0]["forced_by"] is None


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.5, "top_p": 1.0}, {"greedy": True}, {"temperature": 0.0}, {"min_p": 0.2, "top_k": 4}])
def test_steps_are_those_of_a_session(client, storyworld, changes):
    """The same knobs and seed give the same tokens, one request at a time, whatever ``branch_id`` and ``reset_rng`` are."""
    params = {**PARAMS, "seed": 7, "temperature": 1.2, **changes}
    session = lp.Session(storyworld)
    ids = tuple(prompt_ids(storyworld, "Once upon a time"))
    session.state = State((PromptState(0, ids, len(ids), ids),))
    session.decoding = DecodingParams.from_dict(params)
    completion: list[int] = []
    for number in range(6):
        body = {**STEP, "prompt": "Once upon a time", "use_chat_template": False, "params": params, "completion_ids": completion}
        step = answer(client, "/api/step", {**body, "branch_id": f"b_{number}", "reset_rng": number % 2 == 0})
        expected = session.sample_step()[0]
        assert step["selected"]["id"] == expected.token_id and step["selected"]["text"] == expected.token
        assert step["selected"]["p_final"] == pytest.approx(expected.p_final, abs=1e-5)
        completion = step["new_completion_ids"]
    assert tuple(completion) == session.ids[len(ids) :]


def test_a_forced_token_and_a_forced_text(client, storyworld):
    one = answer(client, "/api/step", {**STEP, "force_token_id": 629})
    assert one["new_completion_ids"] == [629] and one["selected"]["p_final"] is None
    assert one["appended_meta"][0] | {"dist": None} == {"dist": None, "selected_id": 629, "forced": True, "forced_by": "token"}
    ids = storyworld.tokenizer.encode(" Once upon a time", add_special_tokens=False)
    text = answer(client, "/api/step", {**STEP, "force_text": " Once upon a time", "completion_ids": [629]})
    assert text["new_completion_ids"] == [629, *ids] and text["selected"] is None
    assert [meta["selected_id"] for meta in text["appended_meta"]] == ids == [token["id"] for token in text["appended"]]
    assert {meta["forced_by"] for meta in text["appended_meta"]} == {"text"}
    for number, meta in enumerate(text["appended_meta"]):  # each as it was when its token was appended
        assert meta["dist"] == answer(client, "/api/preview", {**PREVIEW, "completion_ids": [629, *ids[:number]]})["dist"]


@pytest.mark.parametrize(
    ("kind", "schema", "expected"),
    [
        ("multiple_choice", " Paris\n Oslo", {" Paris", " Oslo"}),
        ("regex", "( Paris| Oslo)", {" Paris", " Oslo"}),
        ("cfg", 'start: " Paris" | " Oslo"', {" Paris", " Oslo"}),
    ],
)
def test_a_constraint_marks_what_is_valid_and_ends_when_complete(client, kind, schema, expected):
    constraint = {"enabled": True, "type": kind, "schema": schema}
    body = {**STEP, "constraint": constraint, "top_k": 50, "use_chat_template": False}
    shown = answer(client, "/api/preview", {key: body[key] for key in PREVIEW})["dist"]
    assert shown["constraint_active"] and shown["constraint_type"] == kind
    kept = [token["text"] for token in shown["tokens"] if token["kept"]]
    assert kept and all(any(choice.startswith(text) for choice in expected) for text in kept)
    assert all(token["p_final"] == 0 and not token["kept"] for token in shown["tokens"] if not token["valid"])
    completion, step = [], None
    for _ in range(12):
        step = answer(client, "/api/step", {**body, "completion_ids": completion})
        completion = step["new_completion_ids"]
        if step["done"]:
            break
    assert step["done"] and step["stop_reason"] == "constraint_complete"
    assert "constraint" in refusal(client, "/api/step", {**body, "force_text": "x"})
    assert "does not fit" in refusal(client, "/api/step", {**body, "force_token_id": 16})


def test_a_json_schema_is_followed_to_its_end(client, storyworld):
    schema = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
    body = {**STEP, "constraint": {"enabled": True, "type": "json_schema", "schema": schema}, "params": {**PARAMS, "seed": 1}}
    completion: list[int] = []
    for _ in range(60):
        step = answer(client, "/api/step", {**body, "completion_ids": completion})
        completion = step["new_completion_ids"]
        if step["done"]:
            break
    assert step["done"] and json.loads(storyworld.tokenizer.decode(completion, skip_special_tokens=True))["a"] in (1, 2)


def test_why_generation_ends(client, storyworld):
    end = answer(client, "/api/step", {**STEP, "force_token_id": storyworld.tokenizer.eos_token_id})
    assert end["done"] and end["stop_reason"] == "eos_token"
    stop = answer(client, "/api/step", {**STEP, "params": {**PARAMS, "stop_sequences": ["upon"]}, "force_text": " Once upon a"})
    assert stop["done"] and stop["stop_reason"] == "stop_sequence"
    full = answer(
        client, "/api/step", {**STEP, "prompt": "a", "use_chat_template": False, "completion_ids": [5] * 509, "params": {**PARAMS, "seed": 3}}
    )
    assert full["stop_reason"] in ("context_full", "eos_token")
    assert not answer(client, "/api/step", {**STEP, "force_token_id": 629})["done"]


def test_nothing_to_go_on_from_is_no_error(serving, tiny_model):
    """That program's page asks for a preview of an empty prompt; a model without a BOS token has nothing to run on."""
    bare = serving(model=tiny_model("qwen2"))
    shown = answer(bare, "/api/preview", {**PREVIEW, "prompt": "", "use_chat_template": False})
    assert shown["dist"] is None and shown["prompt_tokens"] == [] and shown["context_token_count"] == 0


@pytest.mark.parametrize("method", ["attention", "saliency", "input_x_gradient", "integrated_gradients"])
def test_attribution_is_the_librarys(client, storyworld, method):
    asked = {**ATTRIBUTION, "method": method, "use_chat_template": False}
    shown = answer(client, "/api/attribution", asked)
    assert set(shown) == {"ok", "attributions", "source_len", "context_len", "target_id", "model_id", "method"}
    context = [*prompt_ids(storyworld, ATTRIBUTION["prompt"]), 1664]
    scores = lp.attribute(lp.run_trace(storyworld, context, gradients=True), 271, method=method).attribution.values
    assert shown["source_len"] == shown["context_len"] == len(context) == len(shown["attributions"])
    np.testing.assert_allclose(shown["attributions"], scores, atol=1e-5)


def test_attribution_off_and_by_the_completion(client):
    assert answer(client, "/api/attribution", {**ATTRIBUTION, "method": "off"}) == {"ok": True, "attributions": [], "source_len": 0}
    shown = answer(client, "/api/attribution", {**ATTRIBUTION, "target_token_id": None})
    assert shown["target_id"] == 271
    to_come = {**ATTRIBUTION, "target_index": 2, "target_token_id": 5}  # as when a candidate is hovered
    assert answer(client, "/api/attribution", to_come)["source_len"] == shown["source_len"] + 1


@pytest.mark.parametrize(
    ("path", "changes", "status", "said"),
    [
        ("/api/attribution", {"method": "lime"}, 400, "integrated_gradients"),
        ("/api/attribution", {"target_index": 2, "target_token_id": None}, 400, "out of range"),
        ("/api/attribution", {"target_index": 9}, 400, "out of range"),
        ("/api/attribution", {"target_token_id": 1793}, 400, "0 to 1792"),
        ("/api/preview", {"completion_ids": [1793]}, 400, "0 to 1792"),
        ("/api/preview", {"completion_ids": [5] * 600}, 400, "context"),
        ("/api/preview", {"completion_ids": [5] * 1100}, 413, "1024"),
        ("/api/preview", {"top_k": 201}, 422, "200"),
        ("/api/preview", {"constraint": {"enabled": True, "type": "regex", "schema": "(a"}}, 400, "position"),
        ("/api/preview", {"constraint": {"enabled": True, "type": "nonsense", "schema": "a"}}, 400, "nonsense"),
        ("/api/preview", {"constraint": {"enabled": True, "type": "multiple_choice", "schema": ""}}, 400, "at least one"),
        ("/api/step", {"force_token_id": 1793}, 400, "0 to 1792"),
        ("/api/step", {"params": {**PARAMS, "temperature": 1e-9}}, 400, "temperature"),
    ],
)
def test_what_is_wrong_is_said(client, path, changes, status, said):
    base = {"/api/attribution": ATTRIBUTION, "/api/preview": PREVIEW, "/api/step": STEP}[path]
    assert said in str(refusal(client, path, {**base, **changes}, status))


@pytest.mark.parametrize(
    "changes",
    [
        {"unknown": 1},
        {"params": {**PARAMS, "top_q": 1}},
        {"completion_ids": [-1]},
        {"completion_ids": ["a"]},
        {"completion_ids": [2**40]},
        {"top_k": 0},
        {"params": {**PARAMS, "seed": -1}},
        {"params": {**PARAMS, "top_p": 1.5}},
        {"params": {**PARAMS, "stop_sequences": [""]}},
    ],
)
def test_a_body_that_is_not_as_described_is_refused(client, changes):
    detail = refusal(client, "/api/preview", {**PREVIEW, **changes}, 422)
    assert detail and all(set(one) == {"loc", "msg", "type"} for one in detail)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b'"text"',
        b'{"prompt": "\\ud800"}',
        b'{"params": {"temperature": NaN}}',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"top_k": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed_json_is_the_callers_error(client, body):
    response = client.post("/api/preview", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422) and set(response.json()) == {"detail"}
