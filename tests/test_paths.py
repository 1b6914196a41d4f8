"""What is read of a path, kept or made again, is what one run over the whole path gives; analyses of it are those of a fresh trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.errors import AnalysisError, TraceError
from lensplorer.running import run_model
from lensplorer.stepping import TokenTree
from lensplorer.trace import Trace, run_trace
from tests import tiny
from tests.test_stepping import LONG, ROUNDING, TOLERANCE, assert_same

IDS = LONG[:30]
TARGET, OTHER = 5, 9

#: every analysis of one run that needs no gradients → its options
QUESTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("token_scores", (), {}),
    ("token_scores", (), {"temperature": 0.7}),
    ("next_token", (), {"k": 7}),
    ("next_token", (), {"position": 4}),
    ("logit_lens", (), {"tokens": (TARGET, OTHER)}),
    ("logit_lens", (), {"tokens": "next", "top_k": 2}),
    ("logit_lens", (), {"tokens": [TARGET]}),
    ("contrast", (TARGET, OTHER), {"position": 6}),
    ("residual_norms", (), {}),
    ("hidden_similarity", (), {}),
    ("token_similarity", (), {"position": 3}),
    ("residual_decomposition", (TARGET,), {"versus": OTHER}),
    ("residual_decomposition", (TARGET,), {"unit": "head", "position": 5}),
    ("residual_decomposition", (TARGET,), {"unit": "neuron"}),
    ("residual_decomposition", (TARGET,), {"unit": "source"}),
    ("residual_decomposition", (TARGET,), {"unit": "source", "position": 11}),
    ("attention_patterns", (), {}),
    ("attention_patterns", (), {"layer": 1, "head": 2}),
    ("attention_by_layer", (), {"position": 8}),
    ("attention_influence", (), {"top_heads": 4}),
    ("attention_influence", (), {"top_heads": 3, "value_weighted": True, "position": 7}),
    ("attention_rollout", (), {}),
    ("head_statistics", (), {}),
    ("head_statistics", (), {"exclude_first": False}),
    ("qk_attribution", (), {"layer": 2, "head": 1, "source": 9, "query": 13}),
    ("sampling_distribution", (), {"position": 9}),
]


def stepped(model: Any, ids: list[int] = IDS, **options: Any) -> Trace:
    """A path of a prompt, of steps and of a branch left and come back to."""
    tree = TokenTree(model, **options)
    node = tree.extend(tree.root, ids[:12])
    for token_id in ids[12:16]:
        node = tree.extend(node, token_id)
    tree.extend(tree.ancestor(node, 14), LONG[30:36])
    return tree.trace(tree.extend(node, ids[16:]))


def assert_same_result(a: Any, b: Any, tolerance: float) -> None:
    assert a.sizes == b.sizes and set(a.variables) == set(b.variables)
    for name in b.variables:
        one, other = a[name].values, b[name].values
        assert a[name].dims == b[name].dims and a[name].attrs == b[name].attrs, name
        if other.dtype.kind != "f":
            assert (one == other).all(), name
            continue
        assert (np.isnan(one) == np.isnan(other)).all(), name
        largest = max(1.0, float(np.nanmax(np.abs(other), initial=0.0)))
        assert float(np.nanmax(np.abs(one - other), initial=0.0)) <= tolerance * largest, name
    assert {key: value for key, value in a.attrs.items() if not isinstance(value, float)} == {
        key: value for key, value in b.attrs.items() if not isinstance(value, float)
    }


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_analyses_of_a_path_are_those_of_a_fresh_trace(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)
    fresh, path = run_trace(model, IDS), stepped(model)
    for name, arguments, options in QUESTIONS:
        function = getattr(lp, name)
        try:
            expected = function(fresh, *arguments, **options)
        except AnalysisError as error:  # this architecture has no such view
            with pytest.raises(AnalysisError, match=str(error)[:30].replace("(", r"\(").replace(")", r"\)")):
                function(path, *arguments, **options)
            continue
        tolerance = 50 * ROUNDING.get(architecture, TOLERANCE)  # ranks and entropies of near ties, differences of large logits
        assert_same_result(function(path, *arguments, **options), expected, tolerance)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_made_again_under_interventions(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Each kind, on one block and on the stream itself, at some positions or all: the path is the fresh run, activation by activation."""
    model = tiny_model(architecture)
    with torch.no_grad():
        direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    changes = [
        lp.ablate_head(1, [0, 2], positions=slice(3, None)),
        lp.scale("blocks.0.attn.hook_z", 1.7, heads=1),
        lp.steer(direction, 1, 0.8, positions=[2, 5, 14]),
        lp.ablate_mlp(2, positions=[0, 7, 20]),
    ]
    fitting = []
    for change in changes:
        try:
            run_trace(model, IDS[:4], interventions=[change])
        except (AnalysisError, TraceError):
            continue  # this backend does not compute with that hook, and says so
        fitting.append(change)
    assert fitting
    path = stepped(model, interventions=fitting)
    assert path._path.tree.cache.by_block
    assert_same(path, run_trace(model, IDS, interventions=fitting), 2 * ROUNDING.get(architecture, TOLERANCE))


def test_an_intervention_from_elsewhere_is_made_again_in_a_whole_run(tiny_model: Callable[..., Any]) -> None:
    """It may carry something from one block to another, which one block alone would not see."""
    model = tiny_model("gpt2")

    class Carry:
        def hooks(self, model: Any, positions: range) -> list[Any]:
            seen = {}

            def look(value: torch.Tensor, hook: Any) -> torch.Tensor:
                seen["z"] = value.mean(dim=(2, 3))[..., None]
                return value

            def use(value: torch.Tensor, hook: Any) -> torch.Tensor:
                return value + seen["z"]

            return [("blocks.0.attn.hook_z", look), ("blocks.2.hook_mlp_out", use)]

    path = stepped(model, interventions=[Carry()])
    assert not path._path.tree.cache.by_block
    assert_same(path, run_trace(model, IDS, interventions=[Carry()]))


def test_after_an_append_the_new_position_alone_is_computed(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the public functions, on the whole trace."""
    model = tiny_model("llama")
    ran: list[int] = []

    def counted(model: Any, tokens: torch.Tensor, **options: Any) -> Any:
        ran.append(tokens.shape[1])
        return run_model(model, tokens, **options)

    session = lp.Session(model, IDS)
    asked = [lp.token_scores, lp.next_token, lp.logit_lens, lp.residual_norms, lp.hidden_similarity, lp.head_statistics, lp.attention_influence]
    for function in asked:
        function(session.trace())
    monkeypatch.setattr("lensplorer.pathcache.run_model", counted)
    session.append(7)
    trace = session.trace()
    for function in [*asked, lp.attention_by_layer]:
        function(trace)
    lp.residual_decomposition(trace, TARGET)
    assert set(ran) == {1} and len(ran) <= 3, ran  # the step, and the model's end for the token before it


def test_values_come_from_the_cache_where_they_are_the_hooks(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    path = stepped(model)
    path.at("blocks.0.attn.hook_v", -1 + len(path))
    monkeypatch.setattr("lensplorer.pathcache.run_model", lambda *a, **k: pytest.fail("ran"))
    found = path.read("blocks.1.attn.hook_v", 0, len(path))
    monkeypatch.undo()
    assert torch.allclose(found, run_trace(model, IDS)["blocks.1.attn.hook_v"], atol=1e-5)


def test_a_name_that_was_not_read(tiny_model: Callable[..., Any]) -> None:
    path = stepped(tiny_model("gpt2"), reads=["blocks.1.hook_resid_post"])
    assert "blocks.1.hook_resid_post" in path and "blocks.0.hook_mlp_out" not in path
    with pytest.raises(TraceError, match=r"did not read 'blocks.0.hook_mlp_out'"):
        path["blocks.0.hook_mlp_out"]
    with pytest.raises(TraceError, match=r"no activation 'blocks.9.hook_mlp_out'"):
        path.read("blocks.9.hook_mlp_out")


def test_patterns_beyond_the_memory_are_refused(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trace = stepped(tiny_model("gpt2"))
    monkeypatch.setattr("lensplorer.analyses.attention.free_bytes", lambda: 20_000)
    with pytest.raises(AnalysisError, match=r"These patterns of 30 tokens take .* and .* are free: ask for one block"):
        lp.attention_patterns(trace)
    assert lp.attention_patterns(trace, layer=0, head=1).sizes["head"] == 1
    with pytest.raises(AnalysisError, match="There is no layer 3: expected 0 to 2"):
        lp.attention_patterns(trace, layer=3)
