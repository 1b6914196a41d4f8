"""A stepped trace is the fresh trace, whatever way led to it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lensplorer.analyses.attribution import attribute
from lensplorer.analyses.scores import token_scores
from lensplorer.errors import Cancelled, PromptError
from lensplorer.models import load_model, model_info
from lensplorer.running import Hook
from lensplorer.stepping import Node, TokenTree, bytes_per_token
from lensplorer.trace import Trace, run_trace
from lensplorer.watching import watching
from tests import tiny

TOLERANCE = 1e-5
FLOAT64_TOLERANCE = 1e-12
ROUNDING = {"gemma3": 2e-5}  # norms of queries and keys over a scaled embedding: now and then rounding alone is 1.01e-5 here
LONG = [(7 * i) % 300 + 4 for i in range(40)]

_fast = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None, derandomize=True, phases=[Phase.generate])


def assert_same(stepped: Trace, fresh: Trace, tolerance: float = TOLERANCE) -> None:
    """Every activation and the logits, relative to their largest value where that is above one (tiny random models reach hundreds)."""
    assert stepped.tokens.tolist() == fresh.tokens.tolist()
    assert stepped.token_texts == fresh.token_texts
    assert set(stepped.cache.cache_dict) == set(fresh.cache.cache_dict)
    pairs = {"logits": (stepped.logits, fresh.logits), **{name: (stepped[name], fresh[name]) for name in fresh.cache.cache_dict}}
    for name, (a, b) in pairs.items():
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        finite = torch.isfinite(b)
        assert torch.equal(torch.isfinite(a), finite), name
        a, b = a[finite].double(), b[finite].double()
        worst = float((a - b).abs().max() / b.abs().max().clamp_min(1)) if len(a) else 0.0
        assert worst <= tolerance, (name, worst)


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert a.shape == b.shape
    assert float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1)) <= tolerance


class Walk:
    """A tree beside the plain list of tokens that it should stand for."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree, self.node, self.ids, self.seen = tree, tree.root, [], [tree.root]

    def do(self, action: str, number: int, tokens: list[int]) -> None:
        if action == "append":
            self._extend(tokens[:1])
        elif action == "chunk":
            self._extend(tokens)
        elif action == "pop":
            self._cut(len(self.ids) - 1)
        elif action == "branch":  # go back, and on by another way
            self._cut(number % (len(self.ids) + 1))
            self._extend(tokens[:2])
        elif action == "edit":  # another token in the middle, the rest again
            if self.ids:
                at = number % len(self.ids)
                rest = self.ids[at + 1 :]
                self._cut(at)
                self._extend([tokens[0], *rest])
        elif action == "jump":
            self.node = self.seen[number % len(self.seen)]
            self.ids = self.tree.path(self.node)

    def _extend(self, tokens: list[int]) -> None:
        tokens = tokens[: tiny.N_CTX - len(self.ids)]
        self.node = self.tree.extend(self.node, tokens)
        self.ids = self.ids + tokens
        self.seen.append(self.node)

    def _cut(self, length: int) -> None:
        self.node = self.tree.ancestor(self.node, max(0, length))
        self.ids = self.ids[: max(0, length)]


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "chunk", "pop", "branch", "edit", "jump"]),
        st.integers(0, 63),
        st.lists(st.integers(0, tiny.D_VOCAB - 1), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_random_walk(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)

    @settings(_fast, max_examples=4)
    @given(steps)
    def walk(actions: list[tuple[str, int, list[int]]]) -> None:
        taken = Walk(TokenTree(model))
        taken.do("chunk", 0, LONG[:11])  # past the tiny models' sliding windows of 8
        for action in actions:
            taken.do(*action)
            assert taken.tree.path(taken.node) == taken.ids
        if taken.ids:
            assert_same(taken.tree.trace(taken.node), run_trace(model, taken.ids), ROUNDING.get(architecture, TOLERANCE))
            assert_close(taken.tree.logits(taken.node), taken.tree.trace(taken.node).logits[-1])  # a row alone, and among others: rounding

    walk()


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "neox"])
def test_random_walk_in_float64(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Rounding aside, the stepped trace is the fresh one: nothing hides below the tolerance of float32."""
    model = tiny_model(architecture, dtype="float64", backend="hooked")

    @settings(_fast, max_examples=8)
    @given(steps)
    def walk(actions: list[tuple[str, int, list[int]]]) -> None:
        taken = Walk(TokenTree(model))
        taken.do("chunk", 0, LONG[:11])
        for action in actions:
            taken.do(*action)
        if taken.ids:
            assert_same(taken.tree.trace(taken.node), run_trace(model, taken.ids), FLOAT64_TOLERANCE)

    walk()


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "opt", "gemma3"])
def test_one_token_at_a_time_to_the_end_of_the_context(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)
    tree = TokenTree(model)
    node = tree.root
    ids = (LONG * 2)[: tiny.N_CTX]
    for token_id in ids:
        node = tree.extend(node, token_id)
    assert tree.n_runs == tiny.N_CTX
    assert_same(tree.trace(node), run_trace(model, ids))
    with pytest.raises(PromptError, match=r"64 tokens and 1 more are 65, and the context of .* is 64"):
        tree.extend(node, 5)
    assert tree.n_runs == tiny.N_CTX
    assert not node.children


def test_only_new_tokens_run(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    ran: list[int] = []
    run = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, **options: (ran.append(tokens.shape[1]), run(tokens, **options))[1])
    tree = TokenTree(model)
    a = tree.extend(tree.root, LONG[:20])
    b = tree.extend(a, 5)
    other = tree.extend(tree.ancestor(b, 10), [6, 7, 8])
    assert tree.extend(tree.root, [*LONG[:20], 5]) is b
    assert tree.extend(tree.root, [*LONG[:10], 6, 7, 8, 9]).parent is other
    assert ran == [20, 1, 3, 1] and tree.n_runs == 4
    for node in (b, other):
        assert len(tree.trace(node)["blocks.1.hook_resid_pre"]) == len(node)
        assert len(tree.window(node)) == 1
    assert tree.window(b)["blocks.1.mlp.hook_post"].shape == (1, 128)
    assert ran == [20, 1, 3, 1]  # of b, which was run by itself, everything is there
    assert len(tree.window(a).logits) == 1
    assert ran == [20, 1, 3, 1, 1]  # of a, the end of the model alone


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gemma3"])
def test_reads_named_one_by_one(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """The rotated keys of all positions, and scores before the softmax (of bloom up to a constant a row, which is left out)."""
    model = tiny_model(architecture)
    reads = ["blocks.1.hook_resid_post", "blocks.*.attn.hook_rot_*", "blocks.0.attn.hook_k"]
    if architecture == "llama":
        reads.append("blocks.*.attn.hook_attn_scores")
    tree = TokenTree(model, reads=reads)
    node = tree.extend(tree.extend(tree.extend(tree.root, LONG[:9]), 5), LONG[10:14])
    assert_same(tree.trace(node), run_trace(model, tree.path(node), reads=reads))


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gemma3"])
def test_window_is_the_end_of_the_trace(architecture: str, tiny_model: Callable[..., Any]) -> None:
    tree = TokenTree(tiny_model(architecture))
    node = tree.root
    for token_id in LONG[:12]:
        node = tree.extend(node, token_id)
    whole, end = tree.trace(node), tree.window(node, last=5)
    assert end.token_texts == whole.token_texts[-5:]
    assert_close(end.logits, whole.logits[-5:])
    for name in whole.cache.cache_dict:
        axis = 1 if name.endswith("hook_pattern") or end[name].shape[0] != 5 else 0
        assert_close(end[name], whole[name].narrow(axis, 7, 5))  # made again in runs of other lengths, which round otherwise
    with pytest.raises(PromptError, match="1 to 12"):
        tree.window(node, last=13)


def test_trace_stays_what_it_was(tiny_model: Callable[..., Any]) -> None:
    """Nothing that is done to the tree later shows in a trace taken before."""
    model = tiny_model("gpt2")
    tree = TokenTree(model)
    before = tree.extend(tree.root, LONG[:9])
    node = tree.extend(before, 5)
    trace, fresh = tree.trace(node), run_trace(model, tree.path(node))
    tree.forget(node)
    for token_id in (6, 7):
        tree.extend(tree.extend(before, token_id), LONG[:20])
    tree.forget(tree.root)
    assert_same(trace, fresh)


class Zero:
    """Zero one activation at the absolute positions given."""

    def __init__(self, name: str, positions: set[int]) -> None:
        self.name, self.positions = name, positions

    def hooks(self, model: Any, positions: range) -> list[Hook]:
        rows = [row for row, position in enumerate(positions) if position in self.positions]

        def zero(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[:, rows] = 0
            return value

        return [(self.name, zero)] if rows else []


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_interventions(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Some apply to some runs only, which also separates tensors that elsewhere are one."""
    model = tiny_model(architecture)
    changes = (Zero("blocks.1.hook_resid_pre", {3, 11}), Zero("blocks.0.attn.hook_z", {10}))
    tree = TokenTree(model, interventions=changes)
    node = tree.extend(tree.root, LONG[:9])
    for token_id in LONG[9:14]:
        node = tree.extend(node, token_id)
    assert_same(tree.trace(node), run_trace(model, tree.path(node), interventions=changes))
    assert not torch.allclose(tree.trace(node).logits, run_trace(model, tree.path(node)).logits, atol=1e-3)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_interrupted_run_leaves_the_tree_as_it_was(architecture: str, error: type[BaseException], tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)

    class Break:
        armed = False

        def hooks(self, model: Any, positions: range) -> list[Hook]:
            return [("blocks.1.hook_mlp_out", self.fail)] if self.armed else []

        def fail(self, value: torch.Tensor, hook: Any) -> torch.Tensor:
            raise error("in the middle")

    trouble = Break()
    tree = TokenTree(model, interventions=[trouble])
    node = tree.extend(tree.extend(tree.root, LONG[:9]), 5)
    side = tree.extend(tree.ancestor(node, 4), LONG[:3])
    before, n_runs, n_bytes = str(tree), tree.n_runs, tree.n_bytes
    trouble.armed = True
    for start in (node, side, tree.root):
        for ids in ([8], LONG[20:30]):
            with pytest.raises(error, match="in the middle"):
                tree.extend(start, ids)
    assert (str(tree), tree.n_runs, not node.children, not side.children, list(tree.root.children)) == (before, n_runs, True, True, LONG[:1])
    assert tree.n_bytes <= n_bytes + model.cfg.n_layers * 2 * 64 * 32 * 4  # at most room in the working cache
    trouble.armed = False
    assert_same(tree.trace(node), run_trace(model, tree.path(node)))
    after = tree.extend(node, LONG[:5])
    assert_same(tree.trace(after), run_trace(model, tree.path(after)))
    after = tree.extend(side, LONG[:5])
    assert_same(tree.trace(after), run_trace(model, tree.path(after)))


def test_bad_input_is_refused_before_running(tiny_model: Callable[..., Any]) -> None:
    tree = TokenTree(tiny_model("gpt2"))
    for ids in ([-1], [5, tiny.D_VOCAB]):
        with pytest.raises(PromptError, match="outside the vocabulary: expected 0 to 319"):
            tree.extend(tree.root, ids)
    with pytest.raises(PromptError, match="0 tokens and 65 more are 65"):
        tree.extend(tree.root, [5] * 65)
    with pytest.raises(PromptError, match="empty"):
        tree.trace(tree.root)
    with pytest.raises(PromptError, match="another tree"):
        tree.extend(TokenTree(tree.model).root, 5)
    assert (tree.n_runs, tree.n_bytes, tree.root.children) == (0, 0, {})
    assert tree.extend(tree.root, []) is tree.root


def test_bytes_are_bounded_and_dropped_branches_come_back(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("qwen2")
    bound = 80 * bytes_per_token(model)
    tree = TokenTree(model, max_bytes=bound)
    stem = tree.extend(tree.root, LONG[:10])
    leaves: list[Node] = []
    most = 0
    for i in range(12):
        leaves.append(tree.extend(stem, [100 + i, *LONG[:6]]))
        tree.along(leaves[-1], token_scores, first=10)
        most = max(most, tree.n_bytes)
    assert bound / 3 < most <= 1.1 * bound
    n_runs = tree.n_runs
    tree.trace(leaves[-1]), tree.trace(stem)
    assert tree.n_runs == n_runs  # the newest is there still
    assert leaves[-1].segment.columns and not leaves[0].segment.columns  # results go with their nodes
    assert_same(tree.trace(leaves[0]), run_trace(model, tree.path(leaves[0])))
    assert tree.n_runs == n_runs + 1  # the branch alone, not its stem
    assert tree.n_bytes <= 1.1 * bound
    after = tree.extend(leaves[1], 7)
    assert_same(tree.trace(after), run_trace(model, tree.path(after)))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_bytes_counted_are_bytes_held(architecture: str, tiny_model: Callable[..., Any]) -> None:
    """Counted anew from all tensors that came into being with the tree, whoever holds them."""

    def held() -> dict[int, int]:
        gc.collect()
        storages = [thing.untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}

    model = tiny_model(architecture)
    run_trace(model, LONG[:3])
    before = held()
    tree = TokenTree(model)
    stem = tree.extend(tree.root, LONG[:20])
    for token_id in (5, 6, 7):
        node = tree.extend(tree.extend(stem, token_id), LONG[:10])
        for _ in range(3):
            node = tree.extend(node, 9)
    added = sum(n_bytes for address, n_bytes in held().items() if address not in before)
    assert 0.9 * added <= tree.n_bytes <= 1.1 * added


def test_oldest_untouched_goes_first(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    tree = TokenTree(model)
    a, b = tree.extend(tree.root, LONG[:10]), tree.extend(tree.root, LONG[10:20])
    tree.trace(a)  # now b is the older
    c = tree.extend(tree.root, 5)
    tree.max_bytes = tree.n_bytes - 1
    tree.trim(c)
    n_runs = tree.n_runs
    tree.trace(a), tree.trace(c)
    assert tree.n_runs == n_runs
    tree.trace(b)
    assert tree.n_runs == n_runs + 1


def test_path_beyond_the_bound_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    bound = 32 * bytes_per_token(model)
    tree = TokenTree(model, max_bytes=bound)
    node = tree.extend(tree.root, LONG[:10])
    n_runs = tree.n_runs
    with pytest.raises(PromptError, match=r"40 tokens take .* MB of memory, and max_bytes is .* Shorten the text"):
        tree.extend(node, LONG[:30])
    assert tree.n_runs == n_runs
    with pytest.raises(PromptError, match="max_bytes"):
        for token_id in LONG:
            node = tree.extend(node, token_id)
    assert 12 <= len(node) <= 32
    assert tree.n_bytes <= bound + sum(value.nbytes for value in node.details.values())  # of the last position everything is kept
    assert_same(tree.trace(node), run_trace(model, tree.path(node)))


def test_memory_that_is_not_free_is_not_taken(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    tree = TokenTree(model)
    node = tree.extend(tree.root, LONG[:10])
    n_runs, n_bytes = tree.n_runs, tree.n_bytes
    monkeypatch.setattr("lensplorer.stepping.free_bytes", lambda device: 10_000)
    with pytest.raises(PromptError, match=r"30 more tokens take .* MB of memory, and 0 MB are free\. Shorten the text"):
        tree.extend(node, LONG[:30])
    assert (tree.n_runs, tree.n_bytes) == (n_runs, n_bytes) and not node.children


def test_a_long_text_runs_in_pieces(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, tokens and one run give the same; cancelled between two pieces, what was done stays and is not done again."""
    model = tiny_model("qwen2")
    monkeypatch.setattr("lensplorer.stepping.piece_length", lambda model, n: 7)
    monkeypatch.setattr("lensplorer.paths.piece_length", lambda model, n: 7)
    tree = TokenTree(model)
    runs: list[int] = []

    def stop_at_the_third() -> None:
        runs.append(1)
        if len(runs) == 3:
            raise Cancelled("Stopped.")

    with watching(stop_at_the_third), pytest.raises(Cancelled):
        tree.extend(tree.root, LONG)
    assert tree.n_runs == 2
    node = tree.extend(tree.root, LONG)
    assert tree.n_runs == 6
    assert_same(tree.trace(node), run_trace(model, LONG))


def test_forget(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    tree = TokenTree(model)
    stem = tree.extend(tree.root, LONG[:10])
    leaf = tree.extend(tree.extend(stem, [5, 6]), [7])
    side = tree.extend(tree.ancestor(leaf, 11), 9)
    full = tree.n_bytes
    tree.forget(tree.ancestor(leaf, 11))
    assert tree.n_bytes < full and not stem.children
    tree.forget(tree.ancestor(stem, 6))
    node = tree.extend(tree.root, [*LONG[:5], 8, 8])
    assert_same(tree.trace(node), run_trace(model, tree.path(node)))
    assert side.tree is tree
    tree.forget(tree.root)
    assert not tree.root.children
    assert_same(tree.trace(tree.extend(tree.root, [9])), run_trace(model, [9]))


def test_bytes_per_token(tiny_model: Callable[..., Any]) -> None:
    """Counted by hand for GPT-2, and for grouped queries; what is kept grows with the length alone, whatever is read."""
    model = tiny_model("gpt2")
    cfg = model.cfg
    assert bytes_per_token(model) == 4 * (cfg.n_layers + 1) * cfg.d_model + 4 * 2 * cfg.n_layers * cfg.d_model
    assert bytes_per_token(tiny_model("llama")) == 4 * 4 * 32 + 4 * 2 * 3 * 2 * 8
    tree = TokenTree(model)
    tree.extend(tree.root, LONG[:20])
    room = 2 * cfg.n_layers * 4 * cfg.d_model * 32
    assert tree.n_bytes == room + 20 * bytes_per_token(model)


def test_model_is_left_without_hooks(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    assert model_info(model).backend == "hooked"
    before = [("forward" in module.__dict__) for module in model.modules()]
    tree = TokenTree(model)
    tree.trace(tree.extend(tree.root, LONG[:3]))
    assert [("forward" in module.__dict__) for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradients_after_steps(architecture: str, tiny_folder: Callable[..., Any]) -> None:
    """Steps run without autograd's bookkeeping; what a model keeps of them must not be in the way of a run with gradients."""
    model = load_model(str(tiny_folder(architecture)))
    tree = TokenTree(model)
    tree.extend(tree.extend(tree.root, LONG[:20]), LONG[20])
    assert torch.isfinite(torch.from_numpy(attribute(run_trace(model, LONG[:12], gradients=True), 5, method="saliency").attribution.values)).all()
