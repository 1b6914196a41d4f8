"""A model runs once; what it did is a ``Trace``: the labelled record of one prompt that every analysis is a function of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import PromptError, TraceError, did_you_mean
from lensplorer.linear import LinearRun
from lensplorer.models import LensModel, ModelInfo, model_info
from lensplorer.running import Intervention, Reads, hook_names, resolve_reads, run_model, usual_autograd
from lensplorer.segments import beyond_query, is_attention, position_axis
from lensplorer.tokens import Prompt, encode_prompt, resolve_token, token_texts
from lensplorer.weights import Weights, weights_of


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model did on one prompt.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=["blocks.3.hook_resid_post"])
    >>> tuple(trace.logits.shape), tuple(trace["blocks.3.hook_resid_post"].shape)
    ((5, 1793), (5, 128))

    Attributes:
        model: the model that ran.
        tokens: ids fed, BOS included. [position], int64, CPU
        token_texts: exact text of each token.
        logits: the model's own logits. [position, d_vocab]
        cache: a TransformerLens ``ActivationCache`` without batch dimension, under TransformerLens' names, e.g.
            ``trace.cache["resid_post", 3]`` [position, d_model] or ``trace.cache["blocks.3.attn.hook_pattern"]`` [head, query, source].
        interventions: the changes under which the model ran.
        embeddings: the token embeddings as a leaf of the autograd graph when run with ``gradients=True``, else None. [1, position, d_model]
        weights: those that the model ran with; analyses refuse a trace when the model has others now.
        linear: the local linear model's leaves and graph when run with ``gradients="linear"``, else None.
    """

    model: LensModel
    tokens: torch.Tensor
    token_texts: list[str]
    logits: torch.Tensor
    cache: Any
    interventions: tuple[Any, ...] = ()
    embeddings: torch.Tensor | None = field(default=None, repr=False)
    weights: Weights | None = field(default=None, repr=False)
    linear: LinearRun | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.token_texts)

    def __repr__(self) -> str:
        changed = f", {len(self.interventions)} interventions" if self.interventions else ""
        return f"Trace({self.info.name!r}, {len(self)} tokens, {len(self.cache)} activations{changed})"

    @property
    def info(self) -> ModelInfo:
        """The model's ``ModelInfo``."""
        return model_info(self.model)

    @property
    def n_layers(self) -> int:
        return int(self.model.cfg.n_layers)

    def require_same_weights(self) -> None:
        """
        Raises:
            TraceError: the model's weights were changed since it ran, so that this trace and the model do not belong together.
            ModelError: they were converted or moved.
        """
        if self.weights is not None and weights_of(self.model) is not self.weights:
            raise TraceError("The model's weights were changed after this trace was made: run it again with run_trace(model, prompt).")

    def __getitem__(self, name: str) -> torch.Tensor:
        """The activation called ``name``, without batch dimension.

        Raises:
            TraceError: it was not read; the message says how to read it.
        """
        self._require(name)
        return self.cache.cache_dict[name]

    def _require(self, name: str) -> None:
        if name in self:
            return
        if not isinstance(name, str):
            raise TraceError(f"A trace is read by the name of an activation, such as 'blocks.0.hook_mlp_out', not by {name!r}.")
        if name in hook_names(self.model):
            raise TraceError(
                f"This trace did not read {name!r}: run_trace(model, prompt, reads=[{name!r}, ...]). Some hooks are off by default in the model."
            )
        raise TraceError(f"This model has no activation {name!r}.{did_you_mean(name, hook_names(self.model))}")

    def __contains__(self, name: str) -> bool:
        return name in self.cache.cache_dict

    @property
    def n_sources(self) -> int:
        """How many positions the attention of this trace's rows may read."""
        return len(self)

    @property
    def d_vocab(self) -> int:
        """Columns of the logits."""
        return int(self.logits_at(0, 1).shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return self.logits_at(0, 1).dtype

    def logits_at(self, start: int, stop: int) -> torch.Tensor:
        """The logits at positions ``start`` to ``stop - 1``. [position, d_vocab]

        Cost: of a stepped trace, their product with the unembedding.
        """
        return self.logits[start:stop]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """An activation at positions ``start`` to ``stop - 1``, in the model's own order of axes; all of them by default.

        Raises:
            TraceError: as ``trace[name]``.

        Cost: nothing for what was recorded. A stepped trace has the residual stream, and makes the rest again: one position by one step, the first
        time; more by the block that the activation belongs to.
        """
        value = self[name]
        axis = 1 if is_attention(name) else position_axis(name, value, head_first=model_info(self.model).backend == "bridge")
        return value.narrow(axis, start, (len(self) if stop is None else stop) - start)

    def at(self, name: str, position: int) -> torch.Tensor:
        """An activation at one position. [...], attention [head, source]

        Raises:
            TraceError: as ``trace[name]``.
        """
        value = self.read(name, position, position + 1)
        axis = 1 if is_attention(name) else position_axis(name, value, head_first=model_info(self.model).backend == "bridge")
        row = value.select(axis, 0)
        if is_attention(name) and row.shape[-1] < self.n_sources:
            row = torch.nn.functional.pad(row, (0, self.n_sources - row.shape[-1]), value=beyond_query(name))
        return row

    def along(self, analysis: Callable[..., Any], options: dict[str, Any], *, last: int) -> tuple[dict[str, Any], Any] | None:
        """What is known of each position already, and added where it is not (see ``stepping``); None where nothing is kept between questions."""
        return None

    def position(self, position: int) -> int:
        """``position`` counted from the front (-1 is the last).

        Raises:
            TraceError: it is outside the prompt.
        """
        n = len(self)
        if not -n <= position < n:
            raise TraceError(f"Position {position} is outside the prompt of {n} tokens: expected {-n} to {n - 1}.")
        return position % n

    def token_id(self, token: str | int) -> int:
        """The id of ``token``, which must be exactly one token (see ``resolve_token``)."""
        return resolve_token(self.model.tokenizer, token, d_vocab=int(self.model.cfg.d_vocab))


@expects
def run_trace(
    model: LensModel,
    prompt: Prompt,
    *,
    reads: Reads = None,
    interventions: Iterable[Intervention] = (),
    gradients: bool | str = False,
    rule: str = "gate",
    prepend_bos: bool | None = None,
    truncate: bool = False,
) -> Trace:
    """Run the model once over a prompt and keep what it did.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> trace.token_texts[-1]
    ' time'

    Args:
        model: from ``load_model``, or any HookedTransformer or TransformerBridge.
        prompt: text; token ids (a list, array or tensor, [position] or [1, position]); or chat messages, which go through the model's template.
        reads: what to cache: analyses (their declared activations), hook names or wildcards ("blocks.*.hook_resid_post"). None: everything
            but attention scores before the softmax.
        interventions: changes applied during the run, in order.
        gradients: keep the graph from the token embeddings to the logits, which gradient attributions need; inside ``torch.no_grad()`` and
            ``torch.inference_mode()`` too. ``"linear"``: the graph of the local linear model, with attention patterns, norms and gates held at their
            values (see ``lensplorer.linear``); no value changes by a bit.
        rule: of the linear model: ``"gate"`` holds the activated factor of a gated MLP; ``"half"`` shares the product half and half.
        prepend_bos: put a BOS token in front. None: the model's default for text, and never for ids and chat. Never doubled.
        truncate: keep only the last tokens (and BOS) of a prompt longer than the context, instead of refusing it.

    Raises:
        ArgumentError: something else than a model, or than a prompt, is given.
        ModelError: the model's weights were converted or moved since it was loaded (``model.half()``).
        PromptError: the prompt is empty, too long, or has an id outside the vocabulary.
        TraceError: ``reads`` or an intervention names an activation that the model does not have; or it cannot be made linear, with the reason.

    Cost: one forward pass over the prompt, and memory for the activations read, and for the graph where gradients are asked for.
    """
    ids = prompt_ids(model, prompt, prepend_bos=prepend_bos, truncate=truncate)
    interventions = tuple(interventions)
    with usual_autograd():
        tokens = torch.tensor(ids)
        run = run_model(model, tokens[None], reads=resolve_reads(model, reads), interventions=interventions, gradients=gradients, rule=rule)
        activations = {name: value[0] for name, value in run.activations.items()}
        return make_trace(model, tokens, run.logits[0], activations, interventions, run.embeddings, run.linear)


def make_trace(
    model: LensModel,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    activations: dict[str, torch.Tensor],
    interventions: tuple[Any, ...] = (),
    embeddings: torch.Tensor | None = None,
    linear: LinearRun | None = None,
) -> Trace:
    """A ``Trace`` of activations without batch dimension, however they were come by."""
    from transformer_lens import ActivationCache

    cache = ActivationCache(activations, model, has_batch_dim=False)
    texts = token_texts(model.tokenizer, tokens.tolist())
    return Trace(model, tokens, texts, logits, cache, interventions, embeddings, weights_of(model), linear)


def prompt_ids(model: LensModel, prompt: Prompt, *, prepend_bos: bool | None = None, truncate: bool = False) -> list[int]:
    """The ids that ``run_trace`` feeds for ``prompt``.

    Raises:
        PromptError: as ``run_trace``.
    """
    info = model_info(model)
    d_vocab = int(model.cfg.d_vocab)
    ids = encode_prompt(model.tokenizer, prompt, prepend_bos=prepend_bos, default_bos=info.default_prepend_bos, d_vocab=d_vocab)
    if len(ids) <= info.n_ctx:
        return ids
    if not truncate:
        raise PromptError(
            f"The prompt is {len(ids)} tokens, and the context of {info.name!r} is {info.n_ctx}. Shorten it, or pass truncate=True to keep the end."
        )
    head = ids[:1] if ids[0] == model.tokenizer.bos_token_id else []
    return head + ids[len(ids) - info.n_ctx + len(head) :]
