"""The endpoints of the next-token visualization: model status and loading, preview, step, attribution.

The numbers are the library's where that program's were approximate: top-p keeps the token that crosses, presence and frequency penalties
count the completion alone, draws depend on seed and position (so ``branch_id`` and ``reset_rng`` change nothing), ``input_x_gradient`` is signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lensplorer.analyses.attribution import GRADIENT_METHODS, attribute
from lensplorer.errors import SamplingError, TokenError
from lensplorer.sampling.constraints import compile_constraint
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.pipeline import STAGES, Stages, draw_for, pick, run_stages
from lensplorer.sampling.stopping import end_ids, reached_stop
from lensplorer.server.limits import check_tokens, check_top_k
from lensplorer.server.models import Served
from lensplorer.server.schemas import AttributionRequest, ConstraintBody, Params, PreviewRequest, PromptBody, StepRequest
from lensplorer.server.settings import ServerSettings
from lensplorer.tokens import resolve_token, token_text, visible
from lensplorer.trace import prompt_ids, run_trace

#: The stages that reshape the distribution and exclude nothing: its most likely tokens are shown, whatever is excluded after.
_SHAPING = STAGES[: STAGES.index("constraint")]
ATTRIBUTION_METHODS = ("attention", "saliency", "input_x_gradient", "integrated_gradients")


def preview(served: Served, request: PreviewRequest, settings: ServerSettings) -> dict[str, Any]:
    """The prompt and the completion as tokens, and what the next token would be chosen from."""
    check_top_k(settings, top_k=request.top_k)
    prompt, completion = encode(served, request, settings), request.completion_ids
    constraint = read_constraint(request.constraint)
    shown = None
    if prompt or completion:
        params = read_params(request.params)
        shown = describe(served, sampled_from(served, prompt, completion, params, constraint), request.top_k, constraint)
    return {
        "model": served.describe(),
        "prompt_tokens": pills(served, prompt),
        "completion_tokens": pills(served, completion),
        "context_token_count": len(prompt) + len(completion),
        "dist": shown,
    }


def step(served: Served, request: StepRequest, settings: ServerSettings) -> dict[str, Any]:
    """One more token, chosen by the model or by the caller; or the tokens of a text."""
    check_top_k(settings, top_k=request.top_k)
    prompt, completion = encode(served, request, settings), list(request.completion_ids)
    params, constraint = read_params(request.params), read_constraint(request.constraint)
    forced: list[int] | None = None
    if request.force_text:
        if constraint is not None:
            raise SamplingError("Text cannot be forced while a constraint is on: switch it off, or force a token.")
        forced = prompt_ids(served.model, request.force_text, prepend_bos=False)
        check_tokens(settings, [*prompt, *completion, *forced])
    elif request.force_token_id is not None:
        forced = [resolve_token(served.model.tokenizer, request.force_token_id, d_vocab=int(served.model.cfg.d_vocab))]
        if constraint is not None:
            compile_constraint(constraint, served.model.tokenizer, int(served.model.cfg.d_vocab)).require([*completion, *forced])
    appended: list[int] = []
    meta: list[dict[str, Any]] = []
    reason, p_final = None, None
    for token in forced if forced is not None else [None]:
        stages = sampled_from(served, prompt, completion, params, constraint)
        if token is None:
            draw = 0.0 if params.is_greedy else draw_for(params.seed, 0, len(prompt) + len(completion))
            token = pick(stages.p_final, draw)
            p_final = float(stages.p_final[token])
        by = None if forced is None else "text" if request.force_text else "token"
        shown = describe(served, stages, request.top_k, constraint)
        meta.append({"dist": shown, "selected_id": token, "forced": by is not None, "forced_by": by})
        appended.append(token)
        completion.append(token)
        reason = reason or stop_reason(served, prompt, completion, params, constraint)
    tokens = pills(served, appended)
    selected = None if request.force_text else {**{key: tokens[0][key] for key in ("id", "text", "display")}, "p_final": p_final}
    return {
        "model": served.describe(),
        "dist": meta[0]["dist"],
        "selected": selected,
        "appended": tokens,
        "appended_meta": meta,
        "new_completion_ids": completion,
        "done": reason is not None,
        "stop_reason": reason,
    }


def attribution(served: Served, request: AttributionRequest, settings: ServerSettings) -> dict[str, Any]:
    """How much each token before a token of the completion speaks for it."""
    method = request.method.strip().lower()
    if method in ("", "off"):
        return {"ok": True, "attributions": [], "source_len": 0}
    if method not in ATTRIBUTION_METHODS:
        raise TokenError(f"Unsupported attribution method {request.method!r}: expected 'off', {', '.join(map(repr, ATTRIBUTION_METHODS))}.")
    index, completion = request.target_index, request.completion_ids
    if index > len(completion) or (index == len(completion) and request.target_token_id is None):
        raise TokenError(f"target_index {index} is out of range: the completion has {len(completion)} tokens.")
    target = completion[index] if request.target_token_id is None else request.target_token_id
    context = [*encode(served, request, settings), *completion[:index]]
    trace = run_trace(served.model, context, reads=[], gradients=method in GRADIENT_METHODS)
    scores = attribute(trace, target, method=method).attribution.values
    return {
        "ok": True,
        "attributions": [float(score) for score in scores],
        "source_len": len(scores),
        "context_len": len(context),
        "target_id": target,
        "model_id": served.info.name,
        "method": method,
    }


# -- parts -------------------------------------------------------------------------------------------------------------------------------


def encode(served: Served, request: PromptBody, settings: ServerSettings) -> list[int]:
    """The ids of the prompt: a chat of a system and a user message where the tokenizer has a template, unless switched off.

    Empty where there is no text and the model takes no BOS token.

    Raises:
        PromptError: it does not fit the context, or the template refuses it.
        TooLarge: it does not fit the server's limit.
    """
    if served.describe()["has_chat_template"] and request.use_chat_template is not False:
        system = request.system_prompt.strip()
        messages = [{"role": "system", "content": system}] if system else []
        ids = prompt_ids(served.model, [*messages, {"role": "user", "content": request.prompt}])
    elif request.prompt or served.info.default_prepend_bos:
        ids = prompt_ids(served.model, request.prompt)
    else:
        ids = []
    check_tokens(settings, [*ids, *request.completion_ids])
    return ids


def read_params(params: Params) -> DecodingParams:
    """The knobs as the library takes them.

    Raises:
        SamplingError: one is out of range.
    """
    return DecodingParams.from_dict(params.model_dump())


def read_constraint(constraint: ConstraintBody) -> Constraint | None:
    """The constraint as the library takes it; None when it is off.

    Raises:
        SamplingError: an unknown kind, or no choice.
    """
    return Constraint(constraint.type.strip().lower(), constraint.text) if constraint.enabled else None


def sampled_from(served: Served, prompt: Sequence[int], completion: Sequence[int], params: DecodingParams, constraint: Constraint | None) -> Stages:
    """What the token after ``completion`` is chosen from."""
    history = [*prompt, *completion]
    logits = served.logits(history)
    allowed: np.ndarray | None = None
    if constraint is not None:
        allowed = compile_constraint(constraint, served.model.tokenizer, len(logits)).allowed(completion)
    return run_stages(logits, params=params, history=history, n_prompt=len(prompt), allowed=allowed)


def describe(served: Served, stages: Stages, top_k: int, constraint: Constraint | None) -> dict[str, Any]:
    """The ``top_k`` most likely tokens before anything was excluded, each with its probability before and after."""
    shaped = next(stages.scores[stage] for stage in reversed(_SHAPING) if stage in stages.scores)
    ids = torch.topk(shaped, min(top_k, len(shaped))).indices
    p_base, p_final = stages.p_base[ids].tolist(), stages.p_final[ids].tolist()
    kept = (stages.final > -torch.inf).tolist()
    tokens = [
        {
            **pill,
            "p_base": p_base[row],
            "p_final": p_final[row],
            "kept": kept[pill["id"]],
            "valid": True if stages.allowed is None else bool(stages.allowed[pill["id"]]),
        }
        for row, pill in enumerate(pills(served, ids.tolist()))
    ]
    return {
        "top_k": top_k,
        "tokens": tokens,
        "other_p_base": max(0.0, 1.0 - sum(p_base)),
        "other_p_final": max(0.0, 1.0 - sum(p_final)),
        "kept_token_count": sum(kept),
        "constraint_active": constraint is not None,
        "constraint_type": None if constraint is None else {"grammar": "cfg"}.get(constraint.kind, constraint.kind),
    }


def pills(served: Served, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens as the page draws them.

    Raises:
        TokenError: an id is outside the vocabulary.
    """
    tokenizer, d_vocab = served.model.tokenizer, int(served.model.cfg.d_vocab)
    special = set(tokenizer.all_special_ids)
    made = []
    for token_id in ids:
        text = token_text(tokenizer, resolve_token(tokenizer, token_id, d_vocab=d_vocab))
        made.append({"id": token_id, "text": text, "display": visible(text), "special": token_id in special})
    return made


def stop_reason(
    served: Served, prompt: Sequence[int], completion: Sequence[int], params: DecodingParams, constraint: Constraint | None
) -> str | None:
    """Why generation ends with the last token of ``completion``, or None."""
    tokenizer = served.model.tokenizer
    if completion[-1] in end_ids(tokenizer):
        return "eos_token"
    if reached_stop(tokenizer, completion, params.stop_sequences) is not None:
        return "stop_sequence"
    if constraint is not None and compile_constraint(constraint, tokenizer, int(served.model.cfg.d_vocab)).is_complete(completion):
        return "constraint_complete"
    return "context_full" if len(prompt) + len(completion) >= served.info.n_ctx else None
