"""Interventions in a session: undone and saved with it, and the plain run beside the changed one at the cost of one step."""

from __future__ import annotations

import json

import pytest
import torch

from lensplorer.errors import AnalysisError, SessionError
from lensplorer.interventions import ablate_head, ablate_mlp, patch, steer
from lensplorer.session import Session
from lensplorer.trace import run_trace

PROMPT = [5, 17, 40, 100]


def gap(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("name", "backend"), [("gpt2", "hooked"), ("llama", "bridge")])
def test_each_step_shows_both_models_at_the_cost_of_one_step_more(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    session = Session(model, PROMPT, reads=[])
    session.intervene(ablate_head(1, 2), ablate_mlp(0))
    session.running_diff()
    plain, changed = session._plain, session.tree
    before = plain.n_runs, changed.n_runs
    for step, token_id in enumerate((7, 61, 8), 1):
        session.append(token_id)
        diff = session.running_diff(k=5)
        assert (plain.n_runs, changed.n_runs) == (before[0] + step, before[1] + step)
        reference = run_trace(model, session.ids).logits[-1], run_trace(model, session.ids, interventions=session.interventions).logits[-1]
        for side, logits in zip("ab", reference):
            assert torch.allclose(torch.tensor(diff[f"probability_{side}"].values), logits.softmax(-1)[diff.token_id.values], atol=1e-5)
        assert diff.attrs["kl"] > 0 and diff.attrs["position"] == len(session.ids) - 1
    session.pop()
    session.running_diff()
    assert (plain.n_runs, changed.n_runs) == (before[0] + 3, before[1] + 3)


def test_traces_are_those_of_whole_runs(tiny_model):
    model = tiny_model("gpt2")
    session = Session(model, PROMPT, interventions=[ablate_mlp(1)])
    session.append(9)
    assert gap(session.trace().logits, run_trace(model, session.ids, interventions=[ablate_mlp(1)]).logits) <= 1e-5
    assert gap(session.plain_trace().logits, run_trace(model, session.ids).logits) <= 1e-5
    assert session.trace().interventions == (ablate_mlp(1),) and session.plain_trace().interventions == ()


def test_without_interventions_both_are_the_same_run(tiny_model):
    session = Session(tiny_model("gpt2"), PROMPT)
    assert session.running_diff().attrs["kl"] == 0
    assert session.tree is session._plain and session.tree.n_runs == 1


def test_interventions_are_undone_and_survive_every_other_action(tiny_model):
    session = Session(tiny_model("gpt2"), PROMPT)
    session.intervene(ablate_mlp(0))
    session.intervene(steer(torch.ones(32), 1))
    both = (ablate_mlp(0), steer(torch.ones(32), 1))
    for act in (lambda: session.append(7), session.pop, session.branch, lambda: session.choose(2, 9), session.remove, session.reset):
        act()
        assert session.interventions == both
    session.set_prompt([1, 2, 3])
    session.move_cursor(to=0)
    session.hide_cursor()
    session.sample_step()
    assert session.interventions == both
    session.remove_intervention(0)
    assert session.interventions == both[1:]
    session.undo()
    assert session.interventions == both
    while session.interventions:
        session.undo()
    session.redo()
    assert session.interventions == both[:1]


def test_interventions_are_saved(tiny_model, tmp_path):
    model = tiny_model("gpt2")
    clean = run_trace(model, [5, 17, 41, 100])
    session = Session(model, PROMPT, interventions=[ablate_head(1, 2), patch("blocks.1.hook_resid_pre", clean, positions=2)])
    session.save(tmp_path / "session.json")
    other = Session(model)
    other.load(tmp_path / "session.json")
    assert other.state == session.state
    assert gap(other.trace().logits, session.trace().logits) <= 1e-5
    other.undo()
    assert other.interventions == ()


def test_a_session_file_without_interventions_is_read(tiny_model, tmp_path):
    session = Session(tiny_model("gpt2"), PROMPT)
    session.save(tmp_path / "session.json")
    content = json.loads((tmp_path / "session.json").read_text())
    del content["state"]["interventions"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    session.load(tmp_path / "old.json")
    assert session.ids == tuple(PROMPT)
    content["state"]["interventions"] = [{"kind": "Ablatoin"}]
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    with pytest.raises(SessionError, match="Did you mean 'Ablation'"):
        session.load(tmp_path / "damaged.json")


def test_what_does_not_fit_the_model_leaves_the_session_as_it_was(tiny_model):
    session = Session(tiny_model("gpt2"), PROMPT)
    session.intervene(ablate_mlp(0))
    before = session.state
    with pytest.raises(AnalysisError, match="Layer 8"):
        session.intervene(ablate_mlp(8))
    with pytest.raises(SessionError, match="is no intervention"):
        session.interventions = ["ablate"]
    with pytest.raises(SessionError, match="There is no intervention 3"):
        session.remove_intervention(3)
    assert session.state == before
    with pytest.raises(AnalysisError, match="Head 7"):
        Session(tiny_model("gpt2"), PROMPT, interventions=[ablate_head(0, 7)])
