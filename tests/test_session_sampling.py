"""Sampling in a session: the same seed gives the same tokens whatever happens in between, and an error changes nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import xarray as xr

from lensplorer.errors import PromptError, SamplingError, SessionError
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.pipeline import run_stages
from lensplorer.session import Session
from lensplorer.trace import run_trace
from tests import tiny

HOT = DecodingParams(temperature=1.5, top_p=1.0, seed=7)


@pytest.fixture
def session(tiny_model):
    session = Session(tiny_model("gpt2"), "the cat sat")
    session.decoding = HOT
    return session


def test_greedy_is_the_models_first_choice(session):
    session.decoding = "greedy"
    expected = int(run_trace(session.model, list(session.ids)).logits[-1].argmax())
    (step,) = session.sample_step()
    assert session.ids[-1] == step.token_id == expected and step.how == "greedy" and step.p_final == 1
    assert step.token == session.token_texts[-1] and step.position == len(session.ids) - 1


def test_the_same_seed_gives_the_same_tokens(session, tiny_model):
    session.sample_step(8)
    twin = Session(tiny_model("gpt2"), "the cat sat")
    twin.decoding = HOT
    one_by_one = [step.token_id for step in twin.play(8)]
    assert twin.ids == session.ids and list(twin.ids[-len(one_by_one) :]) == one_by_one
    other = Session(tiny_model("gpt2"), "the cat sat")
    other.decoding = DecodingParams.from_dict({**HOT.to_dict(), "seed": 8})
    other.sample_step(8)
    assert other.ids != session.ids


def test_undo_redo_pop_and_other_branches_disturb_nothing(session):
    session.sample_step(6)
    expected = session.ids
    session.undo()
    session.redo()
    assert session.ids == expected
    session.pop(4)
    session.branch()
    session.sample_step(4)  # another branch draws its own numbers
    assert session.ids != expected
    session.append("a")
    session.previous_prompt()
    session.sample_step(2)
    session.undo()
    session.sample_step(4)
    assert session.ids == expected


def test_n_steps_are_one_action(session):
    before = session.ids
    session.sample_step(5)
    session.undo()
    assert session.ids == before


def test_without_a_seed_redo_still_brings_the_same_back(session):
    session.decoding = DecodingParams(temperature=2.0, top_p=1.0, seed=None)
    session.sample_step(5)
    ids = session.ids
    session.undo()
    session.redo()
    assert session.ids == ids


def test_each_token_keeps_what_it_was_chosen_from(session):
    start = len(session.ids)
    first, second = session.sample_step(2)
    session.decoding = DecodingParams(temperature=0.2, top_k=1)
    session.append("a")
    shown = session.distribution_at(start + 1)
    assert shown.attrs["how"] == "sampled" and 0 <= shown.attrs["draw"] < 1 and shown.attrs["token_position"] == start + 1
    chosen = shown.isel(candidate=int(np.flatnonzero(shown.chosen)[0]))
    assert int(chosen.token_id) == second.token_id
    assert float(chosen.p_final) == pytest.approx(second.p_final, rel=1e-4) and float(chosen.p_base) == pytest.approx(second.p_base, rel=1e-4)
    logits = run_trace(session.model, list(session.ids[: start + 1])).logits[-1]
    slow = run_stages(logits, params=HOT, history=session.ids[: start + 1], n_prompt=start)
    assert torch.allclose(torch.tensor(shown.p_final.values), slow.p_final[torch.tensor(shown.token_id.values)], atol=1e-5)
    assert session.distribution_at(start + 2).attrs["how"] == "forced"
    assert session.distribution_at(1).attrs["how"] == "given"
    following = session.distribution_at()
    assert following.attrs["how"] == "next" and int((following.p_final > 0).sum()) == 1 and not following.chosen.any()
    for position in (0, len(session.ids) + 1):
        with pytest.raises(SessionError, match="expected 1 to"):
            session.distribution_at(position)
    assert first.p_base > 0


def test_an_alternative_rewinds_and_branches(session):
    start = len(session.ids)
    session.sample_step(4)
    before = session.ids
    shown = session.distribution_at(start + 1)
    other = int(shown.token_id[~shown.chosen.values][0])
    session.choose(start + 1, other)
    assert session.ids == (*before[: start + 1], other)
    assert [session.distribution_at(at).attrs["how"] for at in (start, start + 1)] == ["sampled", "forced"]
    session.previous_prompt()
    assert session.ids == before


def test_what_is_popped_is_forgotten_and_what_was_before_is_not(session):
    start = len(session.ids)
    session.sample_step(3)
    session.pop(2)
    session.append("a")
    assert [choice.position for choice in session.state.prompt.choices] == [start, start + 1]
    assert [choice.how for choice in session.state.prompt.choices] == ["sampled", "forced"]
    session.set_prompt("the dog")
    assert session.state.prompt.choices == ()


# -- stopping --------------------------------------------------------------------------------------------------------------------------


def test_it_stops_at_the_end_of_text_and_goes_on_when_told(session):
    end = session.model.tokenizer.eos_token_id
    session.append(end)
    assert session.stop_reason == "end_of_text" and list(session.play()) == []
    before = session.state
    with pytest.raises(SessionError, match="ended the text"):
        session.sample_step()
    assert session.state == before
    session.append("a")
    assert session.stop_reason is None


def test_a_stop_sequence_may_begin_in_an_earlier_token(session):
    session.decoding = DecodingParams(temperature=1.0, stop_sequences=("xyz", "Q"))
    for text, reason in (("x", None), ("y", None), ("z", "stop_sequence"), ("a", None), ("é", None), ("Q", "stop_sequence")):
        session.append_text(text)
        assert session.stop_reason == reason, text


def test_a_stop_sequence_in_the_prompt_does_not_count(tiny_model):
    session = Session(tiny_model("gpt2"), "Q Q")
    session.decoding = DecodingParams(stop_sequences=("Q",))
    assert session.stop_reason is None


def test_the_context_ends_it(session):
    session.append_text("a" * (tiny.N_CTX - len(session.ids) - 2))
    session.decoding = DecodingParams(seed=1)
    steps = session.sample_step(50)
    assert steps[-1].stop_reason in ("context_full", "end_of_text") and len(steps) <= 2


def test_play_goes_on_with_what_is_now(session):
    steps = session.play()
    next(steps)
    session.set_prompt("a dog")
    step = next(steps)
    assert session.text.startswith("a dog") and session.ids[-1] == step.token_id
    steps.close()


# -- constraints -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["yes", "no"])
def test_a_forced_token_must_fit_the_constraint(text, session):
    session.constraint = Constraint.multiple_choice(["yes", "no"])
    before = session.state
    for refused in (lambda: session.append("x"), lambda: session.append_text("yex"), lambda: session.append(session.model.tokenizer.eos_token_id)):
        with pytest.raises(SamplingError, match="does not fit the constraint"):
            refused()
        assert session.state == before
    session.append_text(text)
    assert session.stop_reason == "constraint_complete" and list(session.play()) == []


def test_the_model_under_a_constraint_says_what_matches(session):
    session.constraint = Constraint.regex("(ab|ba)[0-9]{3}")
    n = len(session.ids)
    for _ in range(3):
        steps = list(session.play())
        assert steps[-1].stop_reason in ("constraint_complete", "end_of_text")
        said = session.model.tokenizer.decode(session.ids[n:])
        assert re.fullmatch("(ab|ba)[0-9]{3}", said)
        session.pop(3)
        session.branch()
    shown = session.distribution_at()
    assert 1 <= int(shown.valid.sum()) < shown.sizes["candidate"] and not shown.kept[~shown.valid].any()
    session.append()
    assert session.text[-1].isdigit()


def test_stepping_back_under_a_constraint_is_exact(session):
    session.constraint = Constraint.json_schema({"enum": ["alpha", "beta", "gamma"]})
    ids = []
    for _ in session.play():
        ids.append(session.ids)
    for expected in reversed(ids[:-1]):
        session.undo()
        assert session.ids == expected
    while session.stop_reason is None:
        session.sample_step()
    assert session.ids == ids[-1]


def test_a_constraint_that_the_completion_breaks_is_refused(session):
    session.append("x")
    before = session.state
    with pytest.raises(SamplingError, match="from_here=True"):
        session.constraint = Constraint.regex("ab")
    assert session.constraint is None and session.state == before
    with pytest.raises(SamplingError, match="position 0"):
        session.constrain(Constraint.regex("(ab"), from_here=True)
    assert session.constraint is None and session.state == before
    session.constrain(Constraint.regex("ab"), from_here=True)
    session.append_text("ab")
    assert session.stop_reason == "constraint_complete"
    session.constraint = None
    assert session.stop_reason is None


# -- the model off, files, chat ----------------------------------------------------------------------------------------------------------


def test_with_the_model_off_text_is_free(session):
    session.constraint = Constraint.regex("ab")
    session.model_on = False
    session.append_text("zz")
    for action in (session.trace, session.sample_step, session.distribution_at, session.append):
        with pytest.raises(SessionError, match="switched off"):
            action()
    session.pop(2)
    session.model_on = True
    session.append_text("a")
    assert session.distribution_at(len(session.ids) - 1).attrs["how"] == "forced"


def test_an_empty_prompt_is_refused(tiny_model):
    with pytest.raises((SessionError, PromptError), match="empty"):
        Session(tiny_model("gpt2")).sample_step()
    with pytest.raises(SessionError, match="At least one"):
        Session(tiny_model("gpt2"), "a").sample_step(0)


def test_everything_is_saved(session, tmp_path, tiny_model):
    session.constraint = Constraint.multiple_choice(["ab", "ba"])
    session.sample_step()
    session.save(tmp_path / "session.json")
    loaded = Session(tiny_model("gpt2"), "other")
    loaded.load(tmp_path / "session.json")
    assert loaded.state == session.state and loaded.decoding == HOT and loaded.constraint == session.constraint
    assert [step.token_id for step in loaded.play()] == [step.token_id for step in session.play()]
    at = len(session.ids) - 1
    xr.testing.assert_allclose(loaded.distribution_at(at), session.distribution_at(at), atol=1e-5)


def test_a_session_file_from_before_sampling_has_the_defaults(session, tmp_path, tiny_model):
    import json

    path = tmp_path / "session.json"
    session.save(path)
    content = json.loads(path.read_text())
    del content["sampling"]
    for prompt in content["state"]["prompts"]:
        del prompt["choices"]
    path.write_text(json.dumps(content))
    loaded = Session(tiny_model("gpt2"), "other")
    loaded.load(path)
    assert loaded.ids == session.ids and loaded.decoding == DecodingParams()
    path.write_text(json.dumps({**content, "sampling": 3}))
    with pytest.raises(SessionError, match="damaged"):
        loaded.load(path)


def test_chat_goes_through_the_template_with_its_special_tokens(session):
    session.set_prompt([{"role": "user", "content": "the cat"}])
    assert session.token_texts[0] == "<|user|>" and session.token_texts[-1] == "<|assistant|>"
    session.sample_step(2)
    assert len(session.ids) > session.state.prompt.n_given
