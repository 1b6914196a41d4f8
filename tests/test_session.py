"""A session is a walk: every action can be undone, an error changes nothing, and its trace is a fresh run's."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lensplorer.errors import LensplorerError, PromptError, SessionError, TokenError
from lensplorer.models import load_model
from lensplorer.session import Session
from lensplorer.trace import run_trace
from tests import tiny

TEXT = "the cat sat on the mat"


@pytest.fixture
def session(tiny_model):
    return Session(tiny_model("gpt2"), TEXT)


def test_it_starts_with_its_prompt(session):
    assert session.text == TEXT and session.token_texts[0] == "<|endoftext|>"
    assert session.position == len(session.ids) - 1 and session.state.prompt.n_given == len(session.ids)


def test_append_takes_text_ids_and_the_most_likely(session):
    session.append(" shop")
    assert session.text == TEXT + " shop"
    session.append(session.ids[1])
    assert session.text == TEXT + " shopthe"
    best = int(session.trace().logits[-1].argmax())
    session.append()
    assert session.ids[-1] == best and session.state.prompt.n_given == 7
    session.append_text(" the cat")
    assert session.token_texts[-2:] == [" the", " cat"]


def test_pop_keeps_the_first_token_and_what_was_given(session):
    session.pop(2)
    assert session.text == "the cat sat on" and session.state.prompt.n_given == 5
    with pytest.raises(SessionError, match="the first one stays"):
        session.pop(5)
    session.pop(4)
    assert len(session.ids) == 1


def test_branches_share_nothing_but_their_past(session):
    session.append(" shop")
    session.branch()
    session.pop()
    session.append(" the")
    assert [p.ids[-1] for p in session.state.prompts] == [session.state.prompts[0].ids[-1], session.ids[-1]]
    assert session.state.prompt.parent == 0 and session.state.prompt.forked_at == 8
    session.previous_prompt()
    assert session.text.endswith(" shop")
    session.next_prompt()
    session.next_prompt()
    assert session.state.current == 0  # round and round


def test_remove_and_the_last_prompt(session):
    session.branch()
    session.remove()
    assert len(session.state.prompts) == 1
    with pytest.raises(SessionError, match="the only prompt"):
        session.remove()


def test_the_list_is_bounded(tiny_model):
    session = Session(tiny_model("gpt2"), TEXT, max_prompts=2)
    session.branch()
    with pytest.raises(SessionError, match="2 is the most"):
        session.branch()


def test_keys_stay_unique_after_removing(session):
    session.branch()
    session.branch()
    session.go_to_prompt(1)
    session.remove()
    session.branch()
    keys = [p.key for p in session.state.prompts]
    assert len(set(keys)) == len(keys)


def test_choose_another_token_branches_or_cuts(session, tiny_model):
    session.choose(3, " shop")
    assert session.text == "the cat shop" and len(session.state.prompts) == 2
    assert session.state.prompts[0].ids == tuple(run_trace(session.model, TEXT).tokens.tolist())
    full = Session(tiny_model("gpt2"), TEXT, max_prompts=1)
    full.choose(3, " shop")
    assert full.text == "the cat shop" and len(full.state.prompts) == 1
    with pytest.raises(SessionError, match="cannot be changed"):
        session.choose(0, " shop")


def test_the_cursor_moves_by_tokens_words_and_to_the_ends(session):
    session.set_prompt("the anzz cat")  # ' anzz' is several tokens
    texts = session.token_texts
    assert texts[-1] == " cat" and len(texts) > 4
    session.move_cursor(to=0)
    session.move_cursor(1)
    assert session.position == 1
    session.move_cursor(words=1)
    assert texts[session.position].startswith(" ")
    first = session.position
    session.move_cursor(words=1)
    assert session.position == len(texts) - 1
    session.move_cursor(words=-1)
    assert session.position == first
    session.move_cursor(-99)
    assert session.position == 0
    session.move_cursor(to=-1)
    session.move_cursor(99)
    assert session.position == len(texts) - 1
    session.hide_cursor()
    assert session.state.cursor is None
    for wrong in ({}, {"by": 1, "words": 1}, {"to": 99}):
        with pytest.raises(SessionError):
            session.move_cursor(**wrong)


def test_the_cursor_stays_inside_when_tokens_go(session):
    session.move_cursor(to=-1)
    session.pop(3)
    assert session.position == len(session.ids) - 1


def test_undo_and_redo_walk_the_states(session):
    states = [session.state]
    for action in (lambda: session.append(" shop"), session.branch, session.pop, session.remove, session.reset):
        action()
        states.append(session.state)
    steps = 0
    while session._undo:
        session.undo()
        steps += 1
    assert session.state == states[0]
    for _ in range(steps):
        session.redo()
    assert session.state == states[-1]
    with pytest.raises(SessionError, match="nothing to redo"):
        session.redo()
    session.undo()
    session.append(" the")  # a new change ends the redo line
    with pytest.raises(SessionError, match="nothing to redo"):
        session.redo()


def test_reset_returns_to_what_was_set(session):
    session.append(" shop")
    session.pop(4)
    session.reset()
    assert session.text == TEXT


@pytest.mark.parametrize(
    "action, error, message",
    [
        (lambda s: s.append("ran cat"), TokenError, "tokens"),
        (lambda s: s.append(99999), TokenError, "outside the vocabulary"),
        (lambda s: s.append_text(""), PromptError, "empty"),
        (lambda s: s.append_text("z" * 100), PromptError, "context"),
        (lambda s: s.set_prompt("z" * 100), PromptError, "context"),
        (lambda s: s.go_to_prompt(5), SessionError, "no prompt 5"),
        (lambda s: s.undo(), SessionError, "nothing to undo"),
        (lambda s: s.save("/nowhere/at/all.json"), SessionError, "cannot be written"),
        (lambda s: s.load("/nowhere.json"), SessionError, "cannot be read"),
    ],
)
def test_an_error_leaves_the_session_as_it_was(action, error, message, session):
    before = session.state
    with pytest.raises(error, match=message):
        action(session)
    assert session.state is before and not session._undo


def test_the_context_is_refused_before_anything_runs(tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    session = Session(model, list(range(2, 2 + tiny.N_CTX)))
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(PromptError, match=r"65 tokens, and the context .* is 64"):
        session.append(5)


def test_an_empty_session_says_so(tiny_model):
    session = Session(tiny_model("bloom"))
    assert session.ids == () and session.text == ""
    with pytest.raises(PromptError, match="empty"):
        session.trace()
    with pytest.raises(SessionError, match="no token to put the cursor on"):
        session.move_cursor(1)


def test_saving_and_loading(session, tmp_path, tiny_model):
    session.append(" shop")
    session.branch()
    session.move_cursor(to=2)
    path = tmp_path / "walk.json"
    session.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["walk.json"]  # no temporary file stays
    other = Session(tiny_model("gpt2"))
    other.load(path)
    assert other.state == session.state
    other.undo()
    assert other.ids == ()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format="else"), "not a session file"),
        (lambda c: c.update(version=99), "format version 99"),
        (lambda c: c["model"].update(name="other"), "of model 'other'"),
        (lambda c: c["state"]["prompts"][0].update(ids=[5000]), "outside the vocabulary"),
        (lambda c: c["state"].update(current=7), "damaged"),
        (lambda c: c["state"].pop("cursor"), "damaged"),
        (lambda c: c["state"]["prompts"][0].pop("origin"), "damaged"),
    ],
)
def test_a_damaged_session_file_is_refused(change, message, session, tmp_path):
    path = tmp_path / "walk.json"
    session.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    before = session.state
    with pytest.raises(SessionError, match=message):
        session.load(path)
    assert session.state is before
    path.write_text(path.read_text()[:50])
    with pytest.raises(SessionError, match="not valid JSON"):
        session.load(path)


class Walk(RuleBasedStateMachine):
    """Any walk: what the session shows is a fresh run of its tokens, and undo takes the last action back."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(MODEL["model"], TEXT, max_prompts=3)

    def act(self, action) -> None:
        before = self.session.state
        n_undo = len(self.session._undo)
        try:
            action()
        except LensplorerError:
            assert self.session.state is before
            return
        if len(self.session._undo) > n_undo:
            after = self.session.state
            self.session.undo()
            assert self.session.state == before
            self.session.redo()
            assert self.session.state == after

    @rule(token=st.integers(0, tiny.D_VOCAB - 1))
    def append(self, token):
        self.act(lambda: self.session.append(token))

    @rule(n=st.integers(1, 3))
    def pop(self, n):
        self.act(lambda: self.session.pop(n))

    @rule()
    def branch(self):
        self.act(self.session.branch)

    @rule()
    def remove(self):
        self.act(self.session.remove)

    @rule()
    def next_prompt(self):
        self.act(self.session.next_prompt)

    @rule(position=st.integers(0, 8), token=st.integers(0, tiny.D_VOCAB - 1))
    def choose(self, position, token):
        self.act(lambda: self.session.choose(position, token))

    @rule(by=st.integers(-3, 3))
    def move(self, by):
        self.act(lambda: self.session.move_cursor(by))

    @invariant()
    def the_trace_is_a_fresh_run(self):
        trace = self.session.trace()
        assert trace.tokens.tolist() == list(self.session.ids)
        torch.testing.assert_close(trace.logits, run_trace(self.session.model, list(self.session.ids)).logits, rtol=1e-5, atol=1e-5)
        assert 0 <= self.session.position < len(self.session.ids)


MODEL: dict = {}


def test_any_walk(tiny_folder):
    from hypothesis.stateful import run_state_machine_as_test

    MODEL["model"] = load_model(str(tiny_folder("gpt2")))
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    )
