"""Attribution methods that Captum implements, run on the token embeddings of a trace.

Captum sees F as a function of the embeddings [batch, position, d_model] (``Question``); each of its forward passes is one ``run_model``,
interventions included. Perturbing methods treat a token's whole embedding as one feature, present or replaced by the baseline.

- ``gradient_shap`` (Lundberg and Lee 2017): expected gradients at random points of the path from the baseline; its sum approaches F(e) - F(b).
- ``deeplift`` (Shrikumar et al. 2017): refused wherever its sum is not F(e) - F(b), which is its defining property. Captum rescales only the
  nonlinearities that are modules of a few kinds (ReLU, Tanh, Softmax, ...), and what a transformer multiplies (attention, norms, gates) not
  at all; the rest it would pass off as gradient × (input - baseline).
- ``lime`` (Ribeiro et al. 2016): a linear model of F around the prompt, by ridge regression on random subsets of tokens weighted by likeness.
- ``kernel_shap`` (Lundberg and Lee 2017): the same with the Shapley kernel; sums to F(e) - F(b).
- ``feature_ablation``: F(e) - F(e without token s), as ``occlusion``.

Cost: gradient SHAP ``n_samples`` gradients; LIME and kernel SHAP ``n_samples`` forward passes, feature ablation one per token, in batches.
Needs ``pip install "lensplorer[attribution]"``, and scikit-learn for LIME and kernel SHAP.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lensplorer.analyses.question import Question
from lensplorer.errors import AnalysisError
from lensplorer.locks import FairLock

#: Above this, a method whose scores must sum to F(e) - F(b) by definition is not computing what its name says.
_BROKEN = 0.05
_BATCH = 16  # perturbed prompts in one forward pass
_SUMS = ("gradient_shap", "deeplift", "kernel_shap")

#: Captum draws from the process's generators, one thread at a time.
_DRAWING = FairLock()


def captum_scores(question: Question, method: str, *, n_samples: int | None, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Scores of one of Captum's methods [row, position], and further attrs.

    Raises:
        AnalysisError: Captum is not installed, n_samples is too small, or Captum cannot do this right.
    """
    _require("captum", method)
    if n_samples is not None and n_samples < 1:
        raise AnalysisError(f"n_samples must be at least 1, got {n_samples}.")
    rows = [_one_row(question, row) for row in range(question.rows)]
    with _DRAWING, torch.random.fork_rng(devices=[]), _numpy_restored():
        found = []
        for row in rows:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # where along its path gradient SHAP looks
            found.append(_scores(row, method, n_samples))
    scores = torch.zeros(question.rows, question.length, dtype=torch.float64)
    for index, score in enumerate(found):
        scores[index, : len(score)] = score.double().cpu()
    start_value = torch.cat([row.of_path(torch.zeros(1))[0] for row in rows])
    difference = question.of_trace().detach().double().cpu() - start_value
    extra: dict[str, Any] = {"baseline_value": start_value.numpy()}
    if method in _SUMS:
        delta = (scores.sum(-1) - difference).abs()
        extra["completeness"] = (delta / difference.abs().clamp_min(1e-30)).numpy()
    if method == "deeplift" and bool((delta > _BROKEN * difference.abs() + question.noise).any()):
        raise AnalysisError(
            "Captum's DeepLIFT does not hold on this model: its scores must sum to F(prompt) - F(baseline) and are off by"
            f" {100 * float(np.max(extra['completeness'])):.0f} %. It rescales only nonlinearities that are modules, and no products"
            " (attention, norms, gates). Use 'integrated_gradients', which is complete, or 'kernel_shap'."
        )
    if method in ("gradient_shap", "lime", "kernel_shap"):
        extra |= {"n_samples": max(_samples(row, method, n_samples) for row in rows), "seed": seed}
    return scores, extra


@contextmanager
def _numpy_restored() -> Iterator[None]:
    """numpy's global generator afterwards as before: Captum draws from it."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


@contextmanager
def _others_may_draw() -> Iterator[None]:
    """While the model runs; afterwards the generators are as before."""
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()
    _DRAWING.__exit__()
    try:
        yield
    finally:
        _DRAWING.__enter__()
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)


def _one_row(question: Question, row: int) -> Question:
    pick = slice(row, row + 1)
    versus = None if question.versus is None else question.versus[pick]
    return replace(question, positions=question.positions[pick], targets=question.targets[pick], versus=versus)


def _samples(question: Question, method: str, n_samples: int | None) -> int:
    if n_samples is not None:
        return n_samples
    return 64 if method == "gradient_shap" else max(128, 16 * (question.positions[-1] + 1))


def _scores(question: Question, method: str, n_samples: int | None) -> torch.Tensor:
    """Of the single row of ``question``. [position]"""
    from captum import attr

    n = question.length
    embeddings = question.run(lambda value: value, 1, gradients=True)[1]
    inputs = torch.as_tensor(embeddings).detach().requires_grad_(method in ("gradient_shap", "deeplift"))  # [1, position, d_model]
    baseline = question.start.to(inputs).expand_as(inputs)
    forward = _Forward(question)
    samples = _samples(question, method, n_samples)
    if method == "gradient_shap":
        explained = attr.GradientShap(forward).attribute(inputs, baselines=baseline[:1], n_samples=samples)
        return torch.as_tensor(explained)[0].sum(-1).detach()
    if method == "deeplift":
        with _DRAWING, warnings.catch_warnings():  # the filters are the process's too: held once more, so that ``_others_may_draw`` keeps it
            warnings.filterwarnings("ignore", "Setting forward, backward hooks")  # it says so at every call
            explained = attr.DeepLift(forward).attribute(inputs, baselines=baseline)
        return torch.as_tensor(explained)[0].sum(-1).detach()
    # One feature per token that can matter; the tokens after the position share one more, which can only get 0.
    last = question.positions[-1]
    features = torch.arange(n, device=inputs.device).clamp_max(last + 1)[None, :, None].expand_as(inputs)
    options: dict[str, Any] = {"baselines": baseline, "feature_mask": features, "perturbations_per_eval": _BATCH}
    if method == "feature_ablation":
        return torch.as_tensor(attr.FeatureAblation(forward).attribute(inputs, **options))[0, :, 0]
    if last == 0:  # a single feature: any linear fit is the difference itself
        return question.of_trace().detach().cpu() - question.of_path(torch.zeros(1))[0]
    _require("sklearn", method)
    if method == "lime":
        from captum._utils.models.linear_model import SkLearnRidge

        # Captum's default, lasso at a fixed penalty, returns zeros for any F whose differences are small, such as a probability.
        explainer: Any = attr.Lime(forward, interpretable_model=SkLearnRidge(alpha=1e-3))
    else:
        explainer = attr.KernelShap(forward)
    return torch.as_tensor(explainer.attribute(inputs, n_samples=samples, **options))[0, :, 0]


class _Forward(torch.nn.Module):
    """F as Captum wants it: a module from embeddings [batch, position, d_model] to numbers [batch]."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        pieces = self.question.batches(embeddings, gradients=embeddings.requires_grad)
        with _others_may_draw():
            values: list[torch.Tensor] = [_Run.apply(piece, self.question) for piece in pieces]  # type: ignore[no-untyped-call]
        return torch.cat(values)


class _Run(torch.autograd.Function):
    """One run, with the graph of its own kept inside: ``run_model`` makes the embeddings its leaf."""

    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor, question: Question) -> torch.Tensor:
        value, leaf = question.run(lambda _: embeddings.detach(), len(embeddings), gradients=ctx.needs_input_grad[0])
        ctx.kept = (value, leaf)
        return value[:, 0].detach()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        value, leaf = ctx.kept
        return torch.autograd.grad(value, leaf, outputs[0][:, None])[0], None


def _require(package: str, method: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise AnalysisError(f'method {method!r} needs {package}, which is not installed: pip install "lensplorer[attribution]".')
