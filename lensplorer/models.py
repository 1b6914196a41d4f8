"""Models: one loader, two backends, and a proof that they compute what Hugging Face computes.

``load_model`` loads a checkpoint with transformers, converts it to a ``HookedTransformer``, runs both on a probe and keeps the
difference. Where the conversion fails or disagrees, the ``TransformerBridge`` (which wraps the Hugging Face modules themselves and has the
same hook names) takes over and says why; where that fails too, the model is refused.

Weights are stored in the memory layout that HookedTransformer's own products want. As shipped it re-lays W_Q, W_K, W_V, W_O and W_U in
memory on every call, which is most of the time of a one-token step; the values, and so the logits, stay the same to the bit.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from lensplorer.catalogue import ModelFiles, default_model_name, find_model
from lensplorer.errors import ModelError, did_you_mean

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "hooked", "bridge")
PROCESSINGS = ("default", "none")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64", "double": "float64"}

#: Largest accepted difference to Hugging Face on the probe, as max |Δ logit| / max |logit|. float32: eager against eager differs by
#: rounding only. The half precisions round each of the model's many products, and folding moves where.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}

PROBE_LENGTH = 24
_LONGEST_PROBE = 512  # a sliding window shorter than this is tested by running past it
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "yarn")  # rotary scalings that a short probe cannot tell apart


@runtime_checkable
class LensModel(Protocol):
    """What lensplorer asks of a model; ``HookedTransformer`` and ``TransformerBridge`` both satisfy it."""

    cfg: Any
    tokenizer: Any

    @property
    def hook_dict(self) -> dict[str, Any]: ...

    def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...

    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a loaded model, shown on the page and written into each result's attrs.

    Attributes:
        name: as the user named it.
        revision: hub commit, or None.
        architecture: e.g. ``"GPT2LMHeadModel"``.
        backend: ``"hooked"`` or ``"bridge"``.
        processing: ``"default"`` (norm weights folded into the next layer, the model's true logits kept) or ``"none"`` (raw weights).
        dtype, device: e.g. ``"float32"``, ``"cpu"``.
        n_ctx: longest sequence.
        default_prepend_bos: whether a text prompt gets a BOS token in front.
        difference: max |Δ logit| / max |logit| to Hugging Face on the probe; None if not verified.
        log_prob_difference: max |Δ log p| on the same probe.
        reason: why the bridge serves instead of HookedTransformer; empty otherwise.
    """

    name: str
    architecture: str
    backend: str
    processing: str
    dtype: str
    device: str
    n_ctx: int
    default_prepend_bos: bool
    revision: str | None = None
    difference: float | None = None
    log_prob_difference: float | None = None
    reason: str = ""


def model_info(model: LensModel) -> ModelInfo:
    """The ``ModelInfo`` of a model, made from its configuration when it was not loaded by ``load_model``."""
    info = getattr(model, "lensplorer_info", None)
    if info is not None:
        return info
    cfg = model.cfg
    normalisation = str(getattr(cfg, "normalization_type", ""))
    return ModelInfo(
        name=str(getattr(cfg, "model_name", "custom")),
        architecture=str(getattr(cfg, "original_architecture", None) or "custom"),
        backend="hooked" if type(model).__name__ == "HookedTransformer" else "bridge",
        processing="default" if normalisation.endswith("Pre") else "none",
        dtype=str(cfg.dtype).removeprefix("torch."),
        device=str(cfg.device),
        n_ctx=int(cfg.n_ctx),
        default_prepend_bos=bool(getattr(cfg, "default_prepend_bos", True)) and getattr(model.tokenizer, "bos_token_id", None) is not None,
    )


def load_model(
    name: str | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    backend: str = "auto",
    processing: str = "default",
    revision: str | None = None,
    verify: bool = True,
    trust_remote_code: bool = False,
) -> Any:
    """Load a language model ready for ``run_trace``.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> lp.model_info(model).backend
    'hooked'

    Args:
        name: a built-in model (``"storyworld"``, ``"storyworld-mini"``), a hub name (``"gpt2"``, ``"Qwen/Qwen2.5-0.5B"``) or a folder in
            Hugging Face format (``"./my_model"``). None: the environment's ``LENSPLORER_MODEL``, else ``"storyworld"``.
        device: ``"auto"`` (cuda, then mps, then cpu) or a torch device.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or a torch dtype.
        backend: ``"hooked"`` (HookedTransformer), ``"bridge"`` (TransformerBridge), or ``"auto"``: the first unless it disagrees with
            Hugging Face or cannot load.
        processing: ``"default"`` folds norm weights into the next layer and leaves every logit and the residual stream as they are;
            ``"none"`` keeps raw weights. The bridge, and blocks with norms after them, always keep raw weights.
        revision: a hub branch, tag or commit.
        verify: compare with Hugging Face's forward pass on a probe.
        trust_remote_code: run Python from the model's repository. Off by default.

    Returns:
        A ``HookedTransformer`` or ``TransformerBridge`` in eval mode with frozen parameters; ``model_info(model)`` tells which and why.

    Raises:
        ModelError: unknown name, bad option, a checkpoint that cannot be read, or one that neither backend computes correctly.

    Cost: reads the weights once; twice the model's memory until the probe is done.
    """
    if backend not in BACKENDS:
        raise ModelError(f"Unknown backend {backend!r}.{did_you_mean(backend, BACKENDS)}")
    if processing not in PROCESSINGS:
        raise ModelError(f"Unknown processing {processing!r}.{did_you_mean(processing, PROCESSINGS)}")
    torch_dtype, torch_device = resolve_dtype(dtype), resolve_device(device)
    files = find_model(name if name is not None else default_model_name(), revision=revision)
    hf_model, tokenizer = _load_hugging_face(files, torch_dtype, torch_device, trust_remote_code)
    loader = _Loader(files, hf_model, tokenizer, torch_dtype, torch_device, processing, verify)
    return loader.load(backend)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype called ``dtype`` (``"bf16"`` and the like included)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = _DTYPE_ALIASES.get(dtype, dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}.{did_you_mean(dtype, DTYPES)}")
    return DTYPES[name]


def resolve_device(device: str) -> torch.device:
    """The torch device called ``device``; ``"auto"`` takes cuda, then mps, then cpu."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"Unknown device {device!r}. Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"Device {device!r} was asked for, but this machine has no CUDA device. Use device='auto'.")
    return found


def _load_hugging_face(files: ModelFiles, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> tuple[Any, Any]:
    """The Hugging Face model (eager attention, eval, frozen) and its tokenizer, from a local folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with _quiet():
            hf_model = AutoModelForCausalLM.from_pretrained(files.path, dtype=dtype, attn_implementation="eager", use_safetensors=True, **options)
            tokenizer = AutoTokenizer.from_pretrained(files.path, **options)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelError(f"{files.name!r} cannot be loaded by transformers: {_first_line(error)}") from error
    except Exception as error:  # safetensors raises its own error type, which is a plain Exception
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(f"The weights of {files.name!r} are corrupt or cut short: {_first_line(error)}. Fetch the files again.") from error
    hf_model = hf_model.to(device).eval().requires_grad_(False)
    return hf_model, tokenizer


@dataclass
class _Loader:
    """One model on its way from Hugging Face to a backend; the pieces that both attempts share."""

    files: ModelFiles
    hf_model: Any
    tokenizer: Any
    dtype: torch.dtype
    device: torch.device
    processing: str
    verify: bool

    def load(self, backend: str) -> Any:
        reference = self._reference() if self.verify else None
        if backend == "hooked":
            return self._checked(self._hooked(), "hooked", reference)
        reason = ""
        if backend == "auto":
            try:
                return self._checked(self._hooked(), "hooked", reference)
            except ModelError as error:
                reason = str(error)
                logger.info("%s: the bridge takes over. %s", self.files.name, reason)
        try:
            return self._checked(self._bridge(), "bridge", reference, reason=reason)
        except ModelError as error:
            both = f" HookedTransformer: {reason}" if reason else ""
            raise ModelError(f"{self.files.name!r} is refused, since its numbers would not be right. {error}{both}") from error

    # -- the two conversions -----------------------------------------------------------------------------------------------------

    def _hooked(self) -> Any:
        from transformer_lens import HookedTransformer
        from transformer_lens import loading_from_pretrained as loading

        unsupported = self._length_dependent()
        if unsupported:
            raise ModelError(f"HookedTransformer does not implement {unsupported} of {self._architecture}.")
        fold = self.processing == "default"
        try:
            with _quiet(), self._config_name() as config_name:
                cfg = loading.get_pretrained_model_config(
                    config_name, fold_ln=False, device=str(self.device), dtype=self.dtype, **self._config_options(config_name)
                )
                cfg.n_ctx = min(cfg.n_ctx, self._context(cfg.n_ctx))
                self._check_windows(cfg)
                state = loading.get_pretrained_state_dict(config_name, cfg, hf_model=self.hf_model, dtype=self.dtype)
                cfg.tokenizer_name = None
                model = HookedTransformer(cfg, move_to_device=False)
                model.load_and_process_state_dict(
                    state,
                    fold_ln=fold and not _has_post_norms(cfg),
                    center_writing_weights=False,
                    center_unembed=False,
                    fold_value_biases=False,
                )
                model.set_tokenizer(self.tokenizer, default_padding_side="right")
                model.to(self.device, print_details=False)
        except ModelError:
            raise
        except Exception as error:  # any failure of the conversion means the same: it is not for this model
            raise ModelError(f"HookedTransformer cannot load {self._architecture}: {type(error).__name__}: {_first_line(error)}") from error
        lay_out_weights(model)
        return model

    def _bridge(self) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        try:
            with _quiet():
                model = TransformerBridge.boot_transformers(
                    str(self.files.path), hf_model=self.hf_model, tokenizer=self.tokenizer, dtype=self.dtype, device=self.device
                )
        except Exception as error:  # as above
            raise ModelError(f"TransformerBridge cannot load {self._architecture}: {type(error).__name__}: {_first_line(error)}") from error
        return model

    # -- the proof ---------------------------------------------------------------------------------------------------------------

    def _reference(self) -> torch.Tensor:
        """Hugging Face's logits on the probe. [position, d_vocab]"""
        with torch.inference_mode():
            try:
                logits: torch.Tensor = self.hf_model(self._probe()).logits[0]
            except RuntimeError as error:
                raise ModelError(f"Hugging Face's own {self._architecture} fails on a plain prompt: {_first_line(error)}") from error
        return logits.float()

    def _probe(self) -> torch.Tensor:
        """Fixed pseudo-random ids, long enough to run past a short sliding window. [1, position]"""
        window = getattr(self.hf_model.config, "sliding_window", None) or 0
        length = max(PROBE_LENGTH, window + 8 if window < _LONGEST_PROBE else 0)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.hf_model.config.vocab_size, (1, min(length, self._context(length))), generator=generator)
        return ids.to(self.device)

    def _checked(self, model: Any, backend: str, reference: torch.Tensor | None, *, reason: str = "") -> Any:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        default_bos = bool(getattr(model.cfg, "default_prepend_bos", True)) and self._own_bos
        folded = str(getattr(model.cfg, "normalization_type", "")).endswith("Pre")
        info = ModelInfo(
            name=self.files.name,
            revision=self.files.revision,
            architecture=self._architecture,
            backend=backend,
            processing="default" if folded and backend == "hooked" else "none",
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            n_ctx=self._context(int(model.cfg.n_ctx)),
            default_prepend_bos=default_bos,
            reason=reason,
        )
        if reference is not None:
            info = self._verified(model, info, reference)
        model.lensplorer_info = info
        return model

    def _verified(self, model: Any, info: ModelInfo, reference: torch.Tensor) -> ModelInfo:
        with torch.inference_mode():
            try:
                logits = model(self._probe(), return_type="logits")[0].float()
            except Exception as error:  # whatever it is, this backend does not run this model
                raise ModelError(f"{info.backend} fails on the probe: {type(error).__name__}: {_first_line(error)}") from error
        logits = logits[:, : reference.shape[-1]]
        difference = float((logits - reference).abs().max() / reference.abs().max().clamp_min(1e-30))
        log_prob = float((logits.log_softmax(-1) - reference.log_softmax(-1)).abs().max())
        tolerance = TOLERANCES[self.dtype]
        if not difference <= tolerance:  # also catches NaN
            raise ModelError(
                f"{info.backend} disagrees with Hugging Face on {self._architecture}:"
                f" max |Δ logit| / max |logit| = {difference:.1e}, accepted up to {tolerance:.0e}."
            )
        return replace(info, difference=difference, log_prob_difference=log_prob)

    # -- facts about the checkpoint ----------------------------------------------------------------------------------------------

    @property
    def _architecture(self) -> str:
        return type(self.hf_model).__name__

    @property
    def _own_bos(self) -> bool:
        """Whether the tokenizer came with a BOS token of its own (TransformerLens later makes EOS stand in for a missing one)."""
        if not hasattr(self, "_bos"):
            self._bos = self.tokenizer is not None and self.tokenizer.bos_token_id is not None
        return self._bos

    def __post_init__(self) -> None:
        _ = self._own_bos  # read before TransformerLens touches the tokenizer

    def _context(self, default: int) -> int:
        config = self.hf_model.config
        for key in ("max_position_embeddings", "n_positions", "seq_length"):
            value = getattr(config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return default

    def _length_dependent(self) -> str:
        """What a short probe could not show to be missing from HookedTransformer; empty if nothing."""
        rope = getattr(self.hf_model.config, "rope_parameters", None) or {}
        kinds = {rope.get("rope_type")} | {value.get("rope_type") for value in rope.values() if isinstance(value, dict)}
        found = sorted(kind for kind in kinds if kind in _LENGTH_DEPENDENT_ROPE)
        return f"the {found[0]!r} rotary scaling" if found else ""

    def _check_windows(self, cfg: Any) -> None:
        """Refuse a converted configuration that lost the sliding window of some layer."""
        config = self.hf_model.config
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None)
        if types is None:
            types = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
        wanted = ["local" if "sliding" in kind or "chunked" in kind else "global" for kind in types]
        if not window or window >= cfg.n_ctx or "local" not in wanted:
            return
        converted = list(cfg.attn_types) if cfg.use_local_attn and cfg.attn_types else ["global"] * len(wanted)
        if converted[: len(wanted)] != wanted or cfg.window_size != window:
            raise ModelError(f"HookedTransformer loses the sliding window ({window} tokens) of {self._architecture}.")

    @contextmanager
    def _config_name(self) -> Iterator[str]:
        """What to call the model in front of TransformerLens' configuration: its official name, or a folder whose path gives no hints.

        TransformerLens guesses architectures from substrings of a path ("llama", "gemma"), so a configuration is read from a temporary
        folder; GPT-2's lacks ``n_ctx`` when saved by transformers 5.
        """
        from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

        repo_id = self.files.repo_id
        if repo_id is not None and repo_id in OFFICIAL_MODEL_NAMES and not Path(repo_id).exists():
            yield repo_id
            return
        config = self.hf_model.config.to_dict()
        config["architectures"] = [self._architecture]
        config.setdefault("n_ctx", self._context(1024))
        with tempfile.TemporaryDirectory(prefix="model_") as folder:
            type(self.hf_model.config).from_dict(config).save_pretrained(folder)
            yield folder

    def _config_options(self, config_name: str) -> dict[str, Any]:
        return {"revision": self.files.revision} if config_name == self.files.repo_id and self.files.revision else {}


def _has_post_norms(cfg: Any) -> bool:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    return cfg.original_architecture in POST_NORM_ARCHITECTURES


def lay_out_weights(model: Any) -> None:
    """Store W_Q, W_K, W_V, W_O and W_U in the order that HookedTransformer's products read them, values unchanged.

    Each is used transposed and flattened; from this layout that is a view, from the usual one a copy on every call.
    """
    for block in model.blocks:
        attention = block.attn
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            weight = attention._parameters.get(name)
            if weight is not None and weight.ndim == 3:  # [head, d_model, d_head], read as [(head d_head), d_model]
                weight.data = weight.data.permute(0, 2, 1).contiguous().permute(0, 2, 1)
        output = attention._parameters.get("W_O")
        if output is not None and output.ndim == 3:  # [head, d_head, d_model], read as [d_model, (head d_head)]
            output.data = output.data.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    unembed = model.unembed.W_U  # [d_model, d_vocab], read as [d_vocab, d_model]
    unembed.data = unembed.data.T.contiguous().T


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loaders' own chatter (deprecations, logging, progress bars for milliseconds of work) off the user's terminal."""
    from transformers.utils import logging as hf_logging

    level = logging.root.manager.disable
    hf_level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(level)
            hf_logging.set_verbosity(hf_level)
            if bars:
                hf_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
