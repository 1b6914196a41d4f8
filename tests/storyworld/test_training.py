"""The parts of the training: Muon's orthogonal step, the planted head, packing, and a run that learns and can be taken up."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lensplorer.storyworld import architecture, corpus, evaluate, grammar, model_path, muon, train


@pytest.fixture(scope="module")
def tok() -> object:
    return evaluate.load(model_path("storyworld"))[1]


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = muon.orthogonalise(matrix, steps=5)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(got)
    assert got.shape == matrix.shape and values.min() > 0.5 and values.max() < 1.4
    assert torch.nn.functional.cosine_similarity(got.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_fused_matrices_are_stepped_as_three() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(3)]
    fused = torch.nn.Parameter(torch.zeros(4, 12))
    gradient = torch.randn(4, 12, generator=generator)
    fused.grad = gradient.clone()
    for part, piece in zip(parts, gradient.split(4, dim=1), strict=True):
        part.grad = piece.clone()
    muon.Muon([fused], lr=0.1).step()
    muon.Muon(parts, lr=0.1).step()
    assert torch.allclose(fused, torch.cat(list(parts), dim=1))


def test_the_planted_head_looks_back_one_step() -> None:
    torch.manual_seed(0)
    model = architecture.new_model("storyworld", 600).eval()
    model.set_attn_implementation("eager")
    scores = evaluate.head_scores(model, length=20)["previous_token"]
    assert scores[0, 0] > 0.4 > 0.2 > scores.flatten()[1:].max()


def test_random_repeats_repeat() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ids, first = corpus.random_repeat(rng, 500)
        length = first - 1
        assert ids[0] == 0 and min(ids[1:]) >= 5 and len(ids) <= 441 and 4 <= length <= 100
        assert all(ids[i] == ids[i - length] for i in range(first, len(ids)))


def test_packing_keeps_every_token_in_order(tok: object) -> None:
    rest: list[tuple[int, float]] = []
    source = corpus.documents(tok, 3)  # type: ignore[arg-type]
    packed = torch.cat([corpus.rows(source, 3, 20, rest).flatten(1) for _ in range(4)], dim=1)
    flat = [pair for ids, weights in itertools.islice(corpus.documents(tok, 3), 60) for pair in zip(ids, weights, strict=True)]  # type: ignore[arg-type]
    assert packed.shape == (2, 4 * 3 * 21)
    assert packed.T.tolist() == [list(pair) for pair in flat[: packed.shape[1]]]


def test_tested_tokens_weigh_more_and_first_copies_nothing(tok: object) -> None:
    ids, tested = corpus.encode(tok, grammar.write("capital", seed=1))  # type: ignore[arg-type]
    assert len(ids) == len(tested) and any(tested) and not all(tested)
    weights = {weight for _, ws in itertools.islice(corpus.documents(tok, 4), 200) for weight in ws}  # type: ignore[arg-type]
    assert weights == {corpus.IGNORED, 1.0, corpus.TEST_WEIGHT}


@pytest.mark.parametrize("name", ["storyworld", "storyworld-mini"])
def test_a_short_run_learns_and_is_taken_up(name: str, tok: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = train.Stage(4 * train.TOKENS_PER_STEP, ((1.0, 128),))
    monkeypatch.setitem(train.STAGES, name, (stage, stage))
    monkeypatch.setattr(train, "SHARES", {})
    monkeypatch.setattr(train.tokenizer, "build", lambda: tok)
    torch.manual_seed(0)
    model = architecture.new_model(name, len(tok)).train()  # type: ignore[arg-type]
    losses = list(train.run_stage(model, tok, train.Stage(24 * train.TOKENS_PER_STEP, ((1.0, 128),)), 1))  # type: ignore[arg-type]
    assert losses[-1] < losses[0] - 0.3
    train.train(name, tmp_path / "a", first=1)
    train.train(name, tmp_path / "b", first=1, start=tmp_path / "a")
    record = json.loads((tmp_path / "b" / "training.json").read_text())
    assert record["steps"] == 8 and record["tokens"] == 8 * train.TOKENS_PER_STEP and record["seed"] == train.SEEDS[name]
    model, _ = evaluate.load(tmp_path / "b")
    assert model.config.max_position_embeddings == corpus.CONTEXT


def test_what_is_kept_is_the_mean_of_the_ends_of_stages(tok: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, stage = "storyworld-mini", train.Stage(2 * train.TOKENS_PER_STEP, ((1.0, 128),), rate=(200.0, 200.0))
    monkeypatch.setitem(train.STAGES, name, (stage, stage, replace(stage, start=0)))
    monkeypatch.setattr(train, "SHARES", {name: {0: 0.5, 1: 0.3, 2: 0.2}})
    monkeypatch.setattr(train.tokenizer, "build", lambda: tok)
    starts, ends = [], []
    run = train.run_stage

    def noted(model: torch.nn.Module, *rest: Any) -> Iterator[float]:
        starts.append([parameter.detach().clone() for parameter in model.parameters()])
        yield from run(model, *rest)  # type: ignore[arg-type]
        ends.append([parameter.detach().clone() for parameter in model.parameters()])

    monkeypatch.setattr(train, "run_stage", noted)
    train.train(name, tmp_path / "out")
    kept, _ = evaluate.load(tmp_path / "out")
    for i, parameter in enumerate(kept.parameters()):
        torch.testing.assert_close(parameter, 0.5 * ends[0][i] + 0.3 * ends[1][i] + 0.2 * ends[2][i], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(starts[2][i], ends[0][i])
    assert any((one - other).abs().max() > 0.02 for one, other in zip(ends[0], ends[1], strict=True))
