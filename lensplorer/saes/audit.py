"""Does this SAE fit this model, and this prompt? Every check names both sides; a mismatch is refused.

An SAE on the wrong activations gives numbers of the right shape. Its metadata say what it was trained on: model, hook, width, beginning of
text, weight processing, normalisation, context. Each is compared with the model at hand, once per pair, before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensplorer.arguments import expects
from lensplorer.errors import SAEError
from lensplorer.models import load_model, model_info
from lensplorer.saes.info import SAE, sae_info
from lensplorer.saes.site import Site, find_site

if TYPE_CHECKING:
    from lensplorer.models import LensModel
    from lensplorer.trace import Trace

#: Options of TransformerLens' from_pretrained that leave every activation an SAE reads as it is, or that ``find_site`` honours.
_HARMLESS = {"fold_ln", "center_writing_weights", "center_unembed", "dtype", "torch_dtype", "device", "n_devices", "device_map", "trust_remote_code"}
_HARMLESS |= {"default_prepend_bos", "default_padding_side", "move_to_device", "hf_model", "tokenizer", "attn_implementation", "revision"}
#: ... that change what attention reads and writes per head, but nothing in the residual stream or the MLP.
_PER_HEAD = {"fold_value_biases", "refactor_factored_attn_matrices"}
_FEATURES_ONLY_ARCHITECTURES = {"temporal": "its features depend on the whole sequence and its reconstruction on more than its features"}


@dataclass(frozen=True)
class Check:
    """One comparison: what the SAE was trained on, what is here, and whether they agree (None: one side does not say)."""

    subject: str
    sae: str
    here: str
    agrees: bool | None
    remedy: str = ""


@expects
def audit_sae(model: LensModel, sae: SAE, *, trace: Trace | None = None) -> list[Check]:
    """Compare what ``sae`` was trained on with ``model`` (and with one ``trace``: beginning of text, length).

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> all(check.agrees for check in audit_sae(model, sae))
    True

    Returns:
        One ``Check`` per subject, in the order: model, hook, d_in, weight processing, normalisation, architecture, and with a trace BOS
        and context.

    Raises:
        SAEError: ``sae`` is no SAE of sae-lens.
    """
    info, here = sae_info(sae), model_info(model)
    checks = [_model_check(info.model_name, here.name)]
    try:
        site = find_site(model, sae)
    except SAEError as error:
        checks.append(Check("hook", info.hook, here.name, False, str(error)))
    else:
        checks.append(Check("hook", " → ".join(filter(None, [info.hook, info.hook_out])), _site_text(site), True))
        checks.append(_width_check(model, sae, site))
        checks.append(_processing_check(sae, site, here.processing))
    checks += [_normalisation_check(sae), _architecture_check(sae)]
    if trace is not None:
        checks += [_bos_check(sae, trace), _context_check(sae, trace)]
    return checks


def check_sae(model: LensModel, sae: SAE, *, trace: Trace | None = None, beyond_context: bool = False) -> Site:
    """The site of ``sae`` in ``model``, or a refusal.

    Raises:
        SAEError: something that the SAE was trained on is otherwise here; the message names both sides, and what to do.
    """
    failed = [check for check in audit_sae(model, sae, trace=trace) if check.agrees is False and not (beyond_context and check.subject == "context")]
    if failed:
        reasons = " ".join(check.remedy if check.subject == "hook" else _sentence(check) for check in failed)
        raise SAEError(f"The SAE {sae_info(sae).name!r} does not fit {model_info(model).name!r}. {reasons}")
    return find_site(model, sae)


@expects
def model_for_sae(sae: SAE, *, model: LensModel | None = None, **options: Any) -> Any:
    """The model that ``sae`` was trained on, loaded as it wants it.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> lp.model_for_sae(sae, model=model) is model
    True

    Args:
        sae: from ``load_sae``.
        model: a model already loaded, returned as it is when it fits, else reloaded by its name with raw weights.
        options: passed on to ``load_model`` (device, dtype, backend).

    Raises:
        SAEError: the metadata name no model and none was given, or the SAE does not fit the model however loaded.
        ModelError: the model cannot be loaded.

    Cost: loads a model unless ``model`` fits.
    """
    info = sae_info(sae)
    if model is not None:
        try:
            check_sae(model, sae)
            return model
        except SAEError:
            here = model_info(model)
            if not all(check.agrees is not False for check in audit_sae(model, sae) if check.subject in ("model", "d_in")):
                raise
            options = {"device": here.device, "dtype": here.dtype, "revision": here.revision, **options}
    name = model_info(model).name if model is not None else info.model_name
    if name is None:
        raise SAEError(f"The SAE {info.name!r} does not say which model it was trained on: load that model yourself and pass it.")
    found = load_model(name, **{"processing": "none", **options})
    check_sae(found, sae)
    return found


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: aliases of TransformerLens, a missing organisation and letter case do not matter.

    >>> same_model("gpt2-small", "gpt2"), same_model("google/gemma-2-2b", "gemma-2-2b"), same_model("gpt2", "gpt2-medium")
    (True, True, False)
    """
    ours, theirs = _canonical(one), _canonical(other)
    return ours == theirs or ours.rsplit("/", 1)[-1] == theirs.rsplit("/", 1)[-1]


@lru_cache(maxsize=1024)
def _canonical(name: str) -> str:
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    aliases: dict[str, str] = make_model_alias_map()
    short = Path(name).name if name.startswith((".", "/", "~")) or name.count("/") > 1 else name
    return aliases.get(short.lower(), short).lower()


def _sentence(check: Check) -> str:
    remedy = f" {check.remedy}" if check.remedy else ""
    return f"{check.subject[0].upper()}{check.subject[1:]}: the SAE has {check.sae}, here it is {check.here}.{remedy}"


def _site_text(site: Site) -> str:
    text = f"{site.read} · norm weight" if site.weight is not None else site.read
    return f"{text} → {site.write}" if site.transcoder else text


def _model_check(wanted: str | None, here: str) -> Check:
    if wanted is None:
        return Check("model", "not stated", here, None)
    remedy = f"If {here!r} is that model under another name, say so: load_sae(..., model_name={here!r})."
    return Check("model", wanted, here, same_model(wanted, here), remedy)


def _width_check(model: LensModel, sae: SAE, site: Site) -> Check:
    cfg, info = model.cfg, sae_info(sae)
    read, write = (_width(cfg, hook, site.head) for hook in (site.read, site.write))
    agrees = None if read is None or write is None else (read, write) == (info.d_in, info.d_out)
    if not site.transcoder:
        return Check("d_in", str(info.d_in), "unknown" if read is None else str(read), agrees)
    return Check("d_in", f"{info.d_in} → {info.d_out}", f"{read} → {write}", agrees)


def _width(cfg: Any, hook: str, head: int | None) -> int | None:
    kind = hook.rsplit(".", 1)[-1]
    if kind in ("hook_z", "hook_q", "hook_k", "hook_v"):
        heads = cfg.n_heads if kind in ("hook_z", "hook_q") else (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
        return int(cfg.d_head) * (1 if head is not None else int(heads))
    if kind in ("hook_pre", "hook_post", "hook_pre_linear"):
        return int(cfg.d_mlp)
    if kind in ("hook_normalized", "hook_in", "hook_out", "hook_embed", "hook_pos_embed") or kind.startswith(("hook_resid", "hook_attn", "hook_mlp")):
        return int(cfg.d_model)
    return None


def _processing_check(sae: SAE, site: Site, processing: str) -> Check:
    wanted = dict(sae.cfg.metadata.model_from_pretrained_kwargs or {})
    here = f"processing={processing!r}" + (", the mean over d_model taken off" if site.centre_input or site.centre_output else "")
    harmless = _HARMLESS if site.read.rsplit(".", 1)[-1] in ("hook_q", "hook_k", "hook_v", "hook_z") else _HARMLESS | _PER_HEAD
    unmet = {key: value for key, value in wanted.items() if key not in harmless and value not in (False, None)}
    text = ", ".join(f"{key}={value}" for key, value in (unmet or wanted).items()) or "raw weights"
    return Check("weight processing", text, here, not unmet, "Train or choose an SAE for weights without it." if unmet else "")


def _normalisation_check(sae: SAE) -> Check:
    wanted = str(sae.cfg.normalize_activations or "none")
    if wanted in ("expected_average_only_in", "covariance_whitening"):
        remedy = "Its file and release state no such scale, so its inputs cannot be brought to the size that it was trained on."
        return Check("normalisation", wanted, "none folded into its weights", False, remedy)
    return Check("normalisation", wanted, "none" if wanted == "none" else "by sae-lens, at each position", True)


def _architecture_check(sae: SAE) -> Check:
    architecture = sae_info(sae).architecture
    reason = _FEATURES_ONLY_ARCHITECTURES.get(architecture)
    if reason:
        return Check("architecture", architecture, "not supported", False, f"Its analysis would be wrong here: {reason}.")
    if architecture in ("batchtopk", "matryoshka_batchtopk") or (getattr(sae, "training", False) and hasattr(sae, "training_forward_pass")):
        remedy = "Export it (sae.save_inference_model(folder)) and load_sae(folder=folder): in training it chooses features across the batch."
        return Check("architecture", f"{architecture}, in training", "inference", False, remedy)
    return Check("architecture", architecture, "sae-lens' own encode", True)


def _bos_check(sae: SAE, trace: Trace) -> Check:
    wanted = sae.cfg.metadata.prepend_bos
    bos = getattr(trace.model.tokenizer, "bos_token_id", None)
    first = trace.token_texts[0]
    if wanted is None or bos is None:
        return Check("BOS", "not stated" if wanted is None else str(wanted), f"{first!r} first", None)
    begins = int(trace.tokens[0]) == int(bos)
    remedy = f"run_trace(model, prompt, prepend_bos={bool(wanted)})."
    expected = "prompts that begin with BOS" if wanted else "prompts without BOS"
    return Check("BOS", expected, f"{first!r} first", begins == bool(wanted), "" if begins == bool(wanted) else remedy)


def _context_check(sae: SAE, trace: Trace) -> Check:
    longest = sae.cfg.metadata.context_size
    if not longest:
        return Check("context", "not stated", f"{len(trace)} tokens", None)
    remedy = "Shorten the prompt, or pass beyond_context=True for features at positions it never saw."
    return Check("context", f"{int(longest)} tokens", f"{len(trace)} tokens", len(trace) <= int(longest), remedy)
