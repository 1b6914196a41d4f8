"""Two runs side by side: two prompts, a trace and its intervened twin, two branches, two models.

At each position, with p and q the two distributions over the next token: KL(p‖q) = Σ p (ln p - ln q); Jensen-Shannon divergence
½ KL(p‖m) + ½ KL(q‖m), m = ½ (p + q), at most ln 2 (Lin 1991). Both in nats, accumulated in float64 over the whole vocabulary.

Where tokenizers differ, runs are aligned by spans of text, and the two distributions are those after each span. They are then over different
events; what is compared are the tokens of the same text, one by one, and the mass of all others together, which can only bring the two nearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.alignment import Span, align, same_tokens
from lensplorer.analyses.base import analysis, make_result
from lensplorer.analyses.scores import token_scores
from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.tokens import token_texts

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

_CHUNK = 2**23  # logits at a time in float64: 64 MiB
_PER_POSITION = ("position", "query", "source")


@analysis(reads=(), source="Kullback and Leibler 1951; Lin 1991 (Jensen-Shannon)")
def compare(trace_a: Trace, trace_b: Trace, *, align_by: str = "auto") -> xr.Dataset:
    """How far two runs predict alike, and both sides' scores of their tokens.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> plain = lp.run_trace(model, "Once upon a time")
    >>> changed = lp.run_trace(model, "Once upon a time", interventions=[lp.ablate_mlp(0)])
    >>> both = lp.compare(plain, changed)
    >>> bool((both.kl > 0).all()), float(lp.compare(plain, plain).kl.max())
    (True, 0.0)

    Args:
        trace_a, trace_b: any two runs, of one model or two.
        align_by: ``"position"`` (token by token from the front), ``"end"`` (from the end), ``"text"`` (by spans of the same text), or
            ``"auto"``: by position where both models have the same tokens, else by text.

    Returns:
        (position), one row per aligned span, a single token on each side unless tokenizers differ: kl, KL(a‖b) of the predictions made after
        it; js; top1_agree, whether both predict the same text first. Of the span itself, for each side: probability_a and surprisal_a of its
        text (of several tokens: product, and sum), entropy_a of the prediction of its first token, rank_a of its worst; likewise _b;
        NaN where there is no prediction. Coordinates: token and token_b, text of the span; last_a and last_b, its last position on each side.
        attrs: model_a, model_b, aligned, shared_vocabulary (share of a's tokens that b has).

    Raises:
        PromptError: an unknown alignment; or aligned by text, and the texts differ, or nothing aligns.

    Cost: O(position · d_vocab), streamed; no forward pass.
    """
    spans = align(trace_a, trace_b, by=align_by)
    if not spans:
        raise AnalysisError("The two runs share no span of text: there is nothing to compare.")
    vocabulary = None if same_tokens(trace_a, trace_b) else _shared_vocabulary(trace_a, trace_b)
    last_a, last_b = [span.last_a for span in spans], [span.last_b for span in spans]
    kl, js, agree = _divergences(trace_a, trace_b, last_a, last_b, vocabulary)
    sides = {
        **_scores(trace_a, [(span.first_a, span.last_a) for span in spans], "a"),
        **_scores(trace_b, [(span.first_b, span.last_b) for span in spans], "b"),
    }
    texts_a = ["".join(trace_a.token_texts[span.first_a : span.last_a + 1]) for span in spans]
    texts_b = ["".join(trace_b.token_texts[span.first_b : span.last_b + 1]) for span in spans]
    return make_result(
        trace_a,
        compare,
        {"kl": (["position"], kl), "js": (["position"], js), "top1_agree": (["position"], agree), **sides},
        {
            "position": np.arange(len(spans)),
            "token": ("position", np.array(texts_a, dtype=object)),
            "token_b": ("position", np.array(texts_b, dtype=object)),
            "last_a": ("position", np.array(last_a)),
            "last_b": ("position", np.array(last_b)),
        },
        units={"kl": "nats", "js": "nats", "surprisal_a": "bits", "surprisal_b": "bits", "entropy_a": "nats", "entropy_b": "nats"},
        model_a=trace_a.info.name,
        model_b=trace_b.info.name,
        interventions_b="; ".join(map(repr, trace_b.interventions)),
        aligned=_how(spans, align_by),
        shared_vocabulary=1.0 if vocabulary is None else len(vocabulary[0]) / trace_a.d_vocab,
    )


@analysis(reads=(), source="softmax of both runs' logits at one position; Kullback and Leibler 1951; Lin 1991")
def next_token_change(trace_a: Trace, trace_b: Trace, *, k: int = 10, position: int = -1) -> xr.Dataset:
    """The most likely next tokens of two runs of one vocabulary, side by side.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> plain = lp.run_trace(model, "Once upon a")
    >>> changed = lp.run_trace(model, "Once upon a", interventions=[lp.ablate_mlp(0)])
    >>> both = lp.next_token_change(plain, changed, k=3)
    >>> 3 <= both.sizes["candidate"] <= 6, bool(both.rank_b.min() == 1)
    (True, True)

    Args:
        trace_a, trace_b: the plain run and the changed one, say.
        k: how many of each side.
        position: whose prediction is read, in each run; -1 is its last.

    Returns:
        (candidate), the k most likely of either side, by falling probability in b: token_id; token, exact text; probability_a,
        probability_b; rank_a, rank_b, of the whole vocabulary; change, probability_b - probability_a. attrs: kl (a‖b), js, nats; position.

    Raises:
        AnalysisError: k is below 1, or the models have different tokens.
        TraceError: the position is outside a prompt.

    Cost: O(d_vocab); no forward pass.
    """
    if k < 1:
        raise AnalysisError(f"k must be at least 1, got {k}.")
    if not same_tokens(trace_a, trace_b):
        raise AnalysisError("The two models have different tokens: their candidates cannot stand side by side. Use compare.")
    at_a, at_b = trace_a.position(position), trace_b.position(position)
    width = min(trace_a.d_vocab, trace_b.d_vocab)
    z_a, z_b = (trace.logits_at(at, at + 1)[0, :width].detach().float().cpu() for trace, at in ((trace_a, at_a), (trace_b, at_b)))
    p_a, p_b = z_a.softmax(-1), z_b.softmax(-1)
    ids = torch.tensor(sorted({*z_a.topk(min(k, width)).indices.tolist(), *z_b.topk(min(k, width)).indices.tolist()}))
    ids = ids[torch.argsort(p_b[ids], descending=True, stable=True)]
    kl, js, _ = _divergences(trace_a, trace_b, [at_a], [at_b], None)
    ranks = [1 + (z[None] > z[ids, None]).sum(-1).float() for z in (z_a, z_b)]
    return make_result(
        trace_b,
        next_token_change,
        {
            "token_id": (["candidate"], ids),
            "token": (["candidate"], np.array(token_texts(trace_b.model.tokenizer, ids.tolist()), dtype=object)),
            "probability_a": (["candidate"], p_a[ids]),
            "probability_b": (["candidate"], p_b[ids]),
            "rank_a": (["candidate"], ranks[0]),
            "rank_b": (["candidate"], ranks[1]),
            "change": (["candidate"], p_b[ids] - p_a[ids]),
        },
        {"candidate": np.arange(len(ids))},
        position=at_b,
        kl=float(kl[0]),
        js=float(js[0]),
    )


def _how(spans: list[Span], align_by: str) -> str:
    single = all(span.first_a == span.last_a and span.first_b == span.last_b for span in spans)
    return "token by token" + (" from the end" if align_by == "end" else "") if single else "by text"


def _shared_vocabulary(a: Trace, b: Trace) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the tokens whose text both models have, in one order, of text that stands for one token alone on each side."""
    ids_a, ids_b = (_single_texts(trace) for trace in (a, b))
    texts = sorted(ids_a.keys() & ids_b.keys())
    return torch.tensor([ids_a[text] for text in texts], dtype=torch.long), torch.tensor([ids_b[text] for text in texts], dtype=torch.long)


def _single_texts(trace: Trace) -> dict[str, int]:
    texts = token_texts(trace.model.tokenizer, range(trace.d_vocab))
    found: dict[str, int] = {}
    for token_id, text in enumerate(texts):
        found[text] = token_id if text not in found else -1
    return {text: token_id for text, token_id in found.items() if token_id >= 0 and text}


def _divergences(
    a: Trace, b: Trace, last_a: list[int], last_b: list[int], vocabulary: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """KL, JS and top-1 agreement of the predictions at pairs of positions. three [pair]"""
    width = min(a.d_vocab, b.d_vocab)  # ids beyond it are padding of the same vocabulary
    step = max(1, _CHUNK // max(a.d_vocab, b.d_vocab))
    kl, js, agree = [], [], []
    for start in range(0, len(last_a), step):
        z_a, z_b = (_logits_at(trace, last[start : start + step]).double().cpu() for trace, last in ((a, last_a), (b, last_b)))
        if vocabulary is None:
            log_p, log_q = z_a[:, :width].log_softmax(-1), z_b[:, :width].log_softmax(-1)
            agree.append((z_a[:, :width].argmax(-1) == z_b[:, :width].argmax(-1)).numpy())
        else:
            log_p, log_q = (_with_others(z.log_softmax(-1), ids) for z, ids in zip((z_a, z_b), vocabulary))
            agree.append(_same_text(a, z_a.argmax(-1), b, z_b.argmax(-1)))
        log_m = torch.logaddexp(log_p, log_q) - float(np.log(2))
        kl.append(_kl(log_p, log_q))
        js.append((_kl(log_p, log_m) + _kl(log_q, log_m)) / 2)
    return torch.cat(kl), torch.cat(js), np.concatenate(agree)


def _logits_at(trace: Trace, positions: list[int]) -> torch.Tensor:
    """The logits at rising positions. [row, d_vocab]"""
    first = positions[0]
    return trace.logits_at(first, positions[-1] + 1).detach()[[position - first for position in positions]]


def _with_others(log_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of ``ids``, and of everything else together. [row, d_vocab] → [row, shared + 1]"""
    others = torch.ones(log_p.shape[-1], dtype=torch.bool)
    others[ids] = False
    return torch.cat([log_p[:, ids], log_p[:, others].logsumexp(-1, keepdim=True)], -1)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Σ p (ln p - ln q), where p = 0 adds nothing; at least 0, below which only rounding goes. [row]"""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0)


def _same_text(a: Trace, ids_a: torch.Tensor, b: Trace, ids_b: torch.Tensor) -> np.ndarray:
    texts = token_texts(a.model.tokenizer, ids_a.tolist()), token_texts(b.model.tokenizer, ids_b.tolist())
    return np.array([one == other for one, other in zip(*texts)])


def _scores(trace: Trace, spans: list[tuple[int, int]], side: str) -> dict[str, tuple[list[str], np.ndarray]]:
    scores = token_scores(trace)
    surprisal = np.array([scores.surprisal.values[first : last + 1].sum() for first, last in spans], dtype=np.float32)
    found = {
        "probability": np.exp2(-surprisal),
        "surprisal": surprisal,
        "entropy": np.array([scores.entropy.values[first] for first, _ in spans], dtype=np.float32),
        "rank": np.array([scores["rank"].values[first : last + 1].max() for first, last in spans], dtype=np.float32),
    }
    return {f"{name}_{side}": (["position"], values) for name, values in found.items()}


@expects
def difference(result_a: xr.Dataset, result_b: xr.Dataset, *, aligned: xr.Dataset | None = None) -> xr.Dataset:
    """What the second result of an analysis has more than the first: b - a of each of its quantities.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> a, b = (lp.residual_norms(lp.run_trace(model, text)) for text in ("The capital of France is", "The capital of Norway is"))
    >>> lp.difference(a, b).norm.dims
    ('layer', 'position')

    Args:
        result_a, result_b: of the same analysis: per position, layer × position, layer × head, query × source, …
        aligned: ``compare`` of the two runs, where their tokens do not answer to each other one by one: then each span is represented by
            its last token. None: from the front, as many as both have.

    Returns:
        The dimensions of the results, and of their variables those that are real numbers. attrs: of, the analysis; model_a, model_b.

    Raises:
        AnalysisError: the results are of different analyses, or of models with different numbers of layers or heads.

    Cost: none to speak of.
    """
    import xarray as xr

    if aligned is not None and aligned.attrs.get("analysis") != "compare":
        raise AnalysisError(f"aligned is a result of compare(trace_a, trace_b), not one of {aligned.attrs.get('analysis', 'no analysis')!r}.")
    one, other = (result.attrs.get("analysis", "") for result in (result_a, result_b))
    if one != other or not one:
        raise AnalysisError(f"A difference is between two results of one analysis, got {one!r} and {other!r}.")
    found: dict[str, Any] = {}
    for name in result_a.data_vars:
        if name not in result_b:
            continue
        a, b = result_a[name], result_b[name]
        if a.dtype.kind != "f" or a.dims != b.dims:
            continue
        a, b = _matched(a, "last_a", aligned), _matched(b, "last_b", aligned)
        shared = {dim: slice(min(a.sizes[dim], b.sizes[dim])) for dim in a.dims if dim in _PER_POSITION}
        a, b = a.isel(shared), b.isel(shared)
        unequal = [dim for dim in a.dims if a.sizes[dim] != b.sizes[dim]]
        if unequal:
            dim = unequal[0]
            raise AnalysisError(f"{one!r} of the two runs has {a.sizes[dim]} and {b.sizes[dim]} along {dim!r}: there is no difference to take.")
        found[str(name)] = a.copy(data=b.values - a.values)
    if not found:
        expected = [str(name) for name in result_a.data_vars]
        raise AnalysisError(f"{one!r} has no quantity of which a difference can be taken.{did_you_mean('', expected)}")
    result = xr.Dataset(found)
    result.attrs = {
        **result_a.attrs,
        "analysis": "difference",
        "of": str(one),
        "model_a": str(result_a.attrs.get("model", "")),
        "model_b": str(result_b.attrs.get("model", "")),
        "interventions_b": str(result_b.attrs.get("interventions", "")),
        "source": "second minus first",
    }
    return result


def _matched(values: xr.DataArray, side: str, aligned: xr.Dataset | None) -> xr.DataArray:
    if aligned is None:
        return values
    return values.isel({dim: aligned[side].values for dim in values.dims if dim in _PER_POSITION})
