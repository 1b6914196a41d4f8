"""Comparison against a slow loop in float64, alignment of two tokenizations, and differences of results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lensplorer.alignment import Span, align, align_text, align_tokens, same_tokens
from lensplorer.analyses.attention import attention_by_layer, attention_patterns
from lensplorer.analyses.comparison import compare, difference, next_token_change
from lensplorer.analyses.residual import residual_norms
from lensplorer.analyses.scores import token_scores
from lensplorer.errors import AnalysisError, PromptError
from lensplorer.interventions import ablate_mlp, steer
from lensplorer.trace import make_trace, run_trace
from tests import tiny

TEXT = "the cat sat on the mat"


class Retokenized:
    """A stand-in for a model with another tokenizer: bytes only, in another order of ids, no BOS; its logits are made up."""

    def __init__(self, model):
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
        backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        self.cfg, self.hook_dict = model.cfg, model.hook_dict
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    def trace(self, text, seed=0):
        ids = torch.tensor(self.tokenizer.encode(text))
        logits = torch.randn(len(ids), 256, generator=torch.Generator().manual_seed(seed))
        return make_trace(self, ids, logits, {})


def by_hand(z_a, z_b):
    """KL and JS in nats, one token at a time."""
    p, q = (torch.softmax(z.double(), -1).tolist() for z in (z_a, z_b))
    m = [(x + y) / 2 for x, y in zip(p, q)]
    kl = [sum(x * math.log(x / y) for x, y in zip(one, other) if x > 0) for one, other in ((p, q), (p, m), (q, m))]
    return kl[0], (kl[1] + kl[2]) / 2


def test_divergences_equal_a_loop(tiny_model):
    model = tiny_model("gpt2")
    a, b = run_trace(model, TEXT), run_trace(model, TEXT, interventions=[ablate_mlp(0)])
    both = compare(a, b)
    for i in range(len(a)):
        kl, js = by_hand(a.logits[i], b.logits[i])
        assert float(both.kl[i]) == pytest.approx(kl, rel=1e-5) and float(both.js[i]) == pytest.approx(js, rel=1e-5)
        assert bool(both.top1_agree[i]) == (int(a.logits[i].argmax()) == int(b.logits[i].argmax()))
    for side, trace in (("a", a), ("b", b)):
        scores = token_scores(trace)
        for name in ("probability", "surprisal", "entropy", "rank"):
            np.testing.assert_allclose(both[f"{name}_{side}"].values, scores[name].values, rtol=1e-5)
    assert both.attrs["interventions_b"] == repr(ablate_mlp(0)) and both.attrs["aligned"] == "token by token"


def test_a_thing_compared_with_itself_is_no_different(tiny_model):
    trace = run_trace(tiny_model("gpt2"), TEXT)
    both = compare(trace, trace)
    assert float(both.kl.max()) == 0 and float(both.js.max()) <= 1e-12 and bool(both.top1_agree.all())
    patterns = attention_patterns(trace)
    assert not difference(patterns, patterns).weight.values.any()


def test_divergence_is_bounded_where_certainties_clash(tiny_model):
    trace = run_trace(tiny_model("gpt2"), TEXT)
    z = torch.full_like(trace.logits, -200.0)
    one, other = (make_trace(trace.model, trace.tokens, z.index_fill(1, torch.tensor([t]), 200.0), {}) for t in (3, 4))
    both = compare(one, other)
    assert np.allclose(both.js, math.log(2)) and np.allclose(both.kl, 400, rtol=1e-3) and not both.top1_agree.any()


def test_branches_align_from_the_front_and_prompts_from_the_end(tiny_model):
    model = tiny_model("gpt2")
    a, b = run_trace(model, [5, 6, 7, 8]), run_trace(model, [5, 6, 9, 8, 8, 8])
    front = compare(a, b)
    assert front.sizes["position"] == 4 and np.allclose(front.kl[:2], 0, atol=1e-6) and float(front.kl[2]) > 1e-4
    end = compare(a, b, align_by="end")
    assert end.last_a.values.tolist() == [0, 1, 2, 3] and end.last_b.values.tolist() == [2, 3, 4, 5]
    assert float(end.kl[3]) == pytest.approx(by_hand(a.logits[3], b.logits[5])[0], rel=1e-4)
    with pytest.raises(PromptError, match="Did you mean 'position'"):
        compare(a, b, align_by="positions")


# -- two tokenizers --------------------------------------------------------------------------------------------------------------


def test_two_tokenizers_align_by_spans_of_text(tiny_model):
    a = run_trace(tiny_model("gpt2"), "the cat é", prepend_bos=True)
    b = Retokenized(a.model).trace("the cat é")
    assert not same_tokens(a, b)
    spans = align(a, b)
    pieces = ["".join(a.token_texts[s.first_a : s.last_a + 1]) for s in spans]
    assert "".join(pieces).startswith("the cat ") and spans[0].first_a == 1 and spans[0].first_b == 0
    for span in spans:
        text_a = a.model.tokenizer.decode(a.tokens[span.first_a : span.last_a + 1])
        assert text_a == b.model.tokenizer.decode(b.tokens[span.first_b : span.last_b + 1])
    assert [s.first_a for s in spans[1:]] == [s.last_a + 1 for s in spans[:-1]] and spans[-1].last_b == len(b) - 1


def test_spans_are_the_shortest_with_common_ends(tiny_model):
    """Whole words against bytes: the words are the spans. Bytes against bytes: each is one."""
    a = run_trace(tiny_model("gpt2"), "the cat", prepend_bos=False)
    b = Retokenized(a.model).trace("the cat")
    ends = np.cumsum([len(text) for text in a.token_texts]) - 1
    assert align_text(a, b) == [Span(i, i, start, end) for i, (start, end) in enumerate(zip([0, *(ends[:-1] + 1)], ends))]
    assert align_text(b, b) == [Span(i, i, i, i) for i in range(7)]
    with pytest.raises(PromptError, match="differs at byte 4"):
        align_text(a, Retokenized(a.model).trace("the dog"))


def test_comparison_of_two_tokenizers_is_over_what_they_share(tiny_model):
    a = run_trace(tiny_model("gpt2"), TEXT)
    b = Retokenized(a.model).trace(TEXT)
    both = compare(a, b)
    surprisal_a, surprisal_b = token_scores(a).surprisal.values, token_scores(b).surprisal.values
    spans = align_text(a, b)
    vocab_a, vocab_b = (dict(zip(map(trace.model.tokenizer.convert_ids_to_tokens, range(trace.logits.shape[1])), range(999))) for trace in (a, b))
    shared = sorted((vocab_a.keys() & vocab_b.keys()) - {None})
    assert both.attrs["shared_vocabulary"] == pytest.approx(len(shared) / a.logits.shape[1], abs=0.4) and 0 < both.attrs["shared_vocabulary"] < 1
    for k, span in enumerate(spans[1:], 1):
        assert float(both.surprisal_b[k]) == pytest.approx(surprisal_b[span.first_b : span.last_b + 1].sum(), rel=1e-5)
        assert float(both.surprisal_a[k]) == pytest.approx(surprisal_a[span.first_a : span.last_a + 1].sum(), rel=1e-5)
        assert float(both.probability_b[k]) == pytest.approx(2 ** -float(both.surprisal_b[k]), rel=1e-4)
    assert np.isnan(both.surprisal_b[0]) and (both.js <= math.log(2) + 1e-6).all() and (both.kl >= 0).all()
    assert both.attrs["aligned"] == "by text" and "".join(both.token.values) == TEXT
    swapped = compare(b, a)
    np.testing.assert_allclose(swapped.js, both.js, rtol=1e-5)


def test_the_mass_of_other_tokens_is_one_event(tiny_model):
    """Two models that differ in nothing but tokens the other lacks agree on all there is to compare."""
    a = run_trace(tiny_model("gpt2"), "a", prepend_bos=False)
    stand_in = Retokenized(a.model)
    b = stand_in.trace("a")
    by_text = {text: i for i, text in enumerate(token for token in map(a.model.tokenizer.convert_ids_to_tokens, range(tiny.D_VOCAB)))}
    p_a = torch.full((1, tiny.D_VOCAB), 1e-9)
    p_b = torch.full((1, 256), 1e-9)
    for piece, weight in (("a", 0.5), ("b", 0.2)):
        p_a[0, by_text[piece]] = p_b[0, stand_in.tokenizer.convert_tokens_to_ids(piece)] = weight
    p_a[0, 0] = 0.3  # the end of text, which the other model lacks
    p_b[0, stand_in.tokenizer.convert_tokens_to_ids("Ā")] = 0.3  # a byte that is no character: of no text of its own in either
    both = compare(make_trace(a.model, a.tokens, p_a.log(), {}), make_trace(stand_in, b.tokens, p_b.log(), {}))
    assert float(both.js[0]) > 0.1  # the byte is a token of both
    p_b[0, stand_in.tokenizer.convert_tokens_to_ids("Ā")] = 1e-9
    p_b[0, stand_in.tokenizer.convert_tokens_to_ids("b")] = 0.5
    nearer = compare(make_trace(a.model, a.tokens, p_a.log(), {}), make_trace(stand_in, b.tokens, p_b.log(), {}))
    p, q = [0.5, 0.2, 0.3], [0.5, 0.5, 1e-30]
    assert float(nearer.js[0]) == pytest.approx(by_hand(torch.tensor(p).log(), torch.tensor(q).log())[1], abs=1e-4)


# -- differences -----------------------------------------------------------------------------------------------------------------


def test_a_difference_is_second_minus_first(tiny_model):
    model = tiny_model("gpt2")
    a, b = run_trace(model, TEXT), run_trace(model, TEXT, interventions=[steer(torch.ones(32), 1)])
    for analysis in (residual_norms, attention_patterns, token_scores, attention_by_layer):
        one, other = analysis(a), analysis(b)
        change = difference(one, other)
        for name in change.data_vars:
            np.testing.assert_array_equal(change[name].values, other[name].values - one[name].values)
            assert change[name].dims == one[name].dims
        assert change.attrs["of"] == analysis.__name__ and change.attrs["analysis"] == "difference"
    assert "token_id" not in difference(token_scores(a), token_scores(b))


def test_a_difference_of_other_lengths_or_tokenizers_takes_what_answers(tiny_model):
    model = tiny_model("gpt2")
    a, b = run_trace(model, [5, 6, 7]), run_trace(model, [5, 6, 9, 8])
    assert difference(residual_norms(a), residual_norms(b)).norm.shape == (4, 3)
    end = compare(a, b, align_by="end")
    change = difference(residual_norms(a), residual_norms(b), aligned=end)
    np.testing.assert_array_equal(change.norm.values, residual_norms(b).norm.values[:, 1:] - residual_norms(a).norm.values)
    with pytest.raises(AnalysisError, match="one analysis"):
        difference(residual_norms(a), token_scores(b))
    with pytest.raises(AnalysisError, match="along 'layer'"):
        difference(residual_norms(a), residual_norms(a).isel(layer=slice(2)))


def test_candidates_of_both_sides(tiny_model):
    model = tiny_model("gpt2")
    a, b = run_trace(model, TEXT), run_trace(model, TEXT, interventions=[ablate_mlp(1)])
    both = next_token_change(a, b, k=4)
    tops = {*a.logits[-1].topk(4).indices.tolist(), *b.logits[-1].topk(4).indices.tolist()}
    assert set(both.token_id.values.tolist()) == tops and (np.diff(both.probability_b) <= 0).all()
    np.testing.assert_allclose(both.probability_a, a.logits[-1].softmax(-1)[both.token_id.values], rtol=1e-5)
    order = a.logits[-1].argsort(descending=True).tolist()
    assert both.rank_a.values.tolist() == [order.index(t) + 1 for t in both.token_id.values]
    assert both.attrs["kl"] == pytest.approx(by_hand(a.logits[-1], b.logits[-1])[0], rel=1e-5)
    with pytest.raises(AnalysisError, match="different tokens"):
        next_token_change(a, Retokenized(model).trace(TEXT))


def test_tokens_that_align_are_told_apart(tiny_model):
    model = tiny_model("gpt2")
    assert align_tokens(run_trace(model, [5, 6, 7]), run_trace(model, [5, 9, 8])) == [1, 2]
    with pytest.raises(PromptError, match=r"3 tokens and 2.*position 2.*the end"):
        align_tokens(run_trace(model, [5, 6, 7]), run_trace(model, [5, 6]))
