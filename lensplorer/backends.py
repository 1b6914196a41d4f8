"""The two backends: a Hugging Face checkpoint becomes a HookedTransformer or a TransformerBridge, and is proved to compute the same."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lensplorer.catalogue import ModelFiles
from lensplorer.errors import ModelError, first_line
from lensplorer.layout import lay_out_weights, quicken_linear_layers
from lensplorer.models import ModelInfo
from lensplorer.weights import placement

logger = logging.getLogger(__name__)

#: Largest accepted difference to Hugging Face on the probe, as max |Δ logit| / max |logit|. float32: eager against eager differs by
#: rounding only, and TransformerLens takes some steps in float32 even in float64. The half precisions round each of the model's many
#: products, and folding moves where.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}

PROBE_LENGTH = 24
_LONGEST_PROBE = 512  # a sliding window shorter than this is tested by running past it
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "yarn")  # rotary scalings that a short probe cannot tell apart


def load_hugging_face(files: ModelFiles, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> tuple[Any, Any]:
    """The Hugging Face model (eager attention, eval, frozen) and its tokenizer, from a local folder or GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lensplorer.gguf_model import load_gguf

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with _quiet():
            if files.gguf is not None:
                hf_model, tokenizer = load_gguf(files.path / files.gguf, files.name, dtype)
            else:
                hf_model, found = AutoModelForCausalLM.from_pretrained(
                    files.path, dtype=dtype, attn_implementation="eager", use_safetensors=True, output_loading_info=True, **options
                )
                _require_all_weights(hf_model, found, files.name)
                tokenizer = AutoTokenizer.from_pretrained(files.path, **options)
                _require_tokens(tokenizer, files.name)
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(f"The weights of {files.name!r} are corrupt or cut short: {first_line(error)}. Fetch the files again.") from error
    except Exception as error:  # what a damaged file makes of the code that trusts it can be any error
        raise ModelError(f"{files.name!r} cannot be loaded by transformers: {_said(error)}") from error
    hf_model = hf_model.to(device).eval().requires_grad_(False)
    return hf_model, tokenizer


def _said(error: Exception) -> str:
    """What transformers says, in one line; of an error that says little, its kind too."""
    text = " ".join(str(error).split())[:300]
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says. Fetch the files again."
    return text if isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) else f"{type(error).__name__}: {text}"


def _require_all_weights(hf_model: Any, found: dict[str, Any], name: str) -> None:
    """transformers makes up at random what a file lacks, and passes over blocks that the configuration does not count.

    Raises:
        ModelError: the weights are not those of the configuration.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(f"The weights of {name!r} lack {_few(missing)}, and would be random numbers. Fetch the files again.")
    blocks = {_any_block(key) for key in hf_model.state_dict()}
    left = sorted(key for key in found["unexpected_keys"] if _any_block(key) in blocks)
    if left or hf_model.config.num_hidden_layers < 1:
        raise ModelError(
            f"The config.json of {name!r} says {hf_model.config.num_hidden_layers} blocks, and its weights have more"
            f"{f': {_few(left)} would not be read' if left else ''}. Fetch the files again."
        )


def _any_block(key: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", key)


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:2])) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _require_tokens(tokenizer: Any, name: str) -> None:
    """
    Raises:
        ModelError: a text becomes no tokens. So it is where the tokenizer's files are missing: transformers makes an empty one.
    """
    if not tokenizer.encode("Once upon a time", add_special_tokens=False):
        raise ModelError(f"The tokenizer of {name!r} makes no tokens of a text: its tokenizer.json is missing or damaged. Fetch the files again.")


@dataclass
class Loader:
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
            with _quiet(), self._config_folder() as folder:
                cfg, source = self._hooked_config(folder)
                cfg.n_ctx = min(cfg.n_ctx, self._context(cfg.n_ctx))
                self._check_windows(cfg)
                state = loading.get_pretrained_state_dict(source, cfg, hf_model=self.hf_model, dtype=self.dtype)
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
            raise ModelError(f"HookedTransformer cannot load {self._architecture}: {type(error).__name__}: {first_line(error)}") from error
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
            raise ModelError(f"TransformerBridge cannot load {self._architecture}: {type(error).__name__}: {first_line(error)}") from error
        quicken_linear_layers(model)
        return model

    # -- the proof ---------------------------------------------------------------------------------------------------------------

    def _reference(self) -> torch.Tensor:
        """Hugging Face's logits on the probe. [position, d_vocab]"""
        with torch.inference_mode():
            try:
                logits: torch.Tensor = self.hf_model(self._probe()).logits[0]
            except Exception as error:  # whatever it is, there is nothing to compare with
                raise ModelError(f"Hugging Face's own {self._architecture} fails on a plain prompt: {first_line(error)}") from error
        if not bool(logits.isfinite().all()):
            raise ModelError(f"Hugging Face's own {self._architecture} gives numbers that are not finite on a plain prompt: {self._not_finite()}.")
        return logits.float()

    def _not_finite(self) -> str:
        """Where that comes from."""
        broken = [name for name, parameter in self.hf_model.named_parameters() if not bool(parameter.isfinite().all())]
        if broken:
            return f"the weights {_few(broken)} hold NaN or infinity"
        return "float16 overflows in some models, dtype='float32' does not" if self.dtype == torch.float16 else "its configuration may be damaged"

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
        default_bos = bool(getattr(model.cfg, "default_prepend_bos", True)) and self._wants_bos
        if self.files.gguf is not None:
            model.cfg.default_prepend_bos = default_bos
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
        model.lensplorer_placement = placement(model)
        return model

    def _verified(self, model: Any, info: ModelInfo, reference: torch.Tensor) -> ModelInfo:
        with torch.inference_mode():
            try:
                logits = model(self._probe(), return_type="logits")[0].float()
            except Exception as error:  # whatever it is, this backend does not run this model
                raise ModelError(f"{info.backend} fails on the probe: {type(error).__name__}: {first_line(error)}") from error
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

    def __post_init__(self) -> None:
        """Before TransformerLens touches the tokenizer: it makes EOS stand in for a missing BOS.

        A GGUF file may say that a text has no BOS in front. TransformerLens would then read the tokenizer again, with BOS, from a folder that
        there is not: it is told that this one has it.
        """
        self._wants_bos = self.tokenizer is not None and self.tokenizer.bos_token_id is not None
        if self.files.gguf is not None and self._wants_bos:
            self._wants_bos = bool(self.tokenizer.init_kwargs.get("add_bos_token", True))
            self.tokenizer.init_kwargs["add_bos_token"] = True

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

    def _hooked_config(self, folder: str) -> tuple[Any, str]:
        """TransformerLens' configuration of this checkpoint, and the name it goes by there.

        Some architectures (Gemma, OLMo, Phi) it only configures by their official names.
        """
        from transformer_lens import loading_from_pretrained as loading
        from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

        options: dict[str, Any] = {"fold_ln": False, "device": str(self.device), "dtype": self.dtype}
        try:
            return loading.get_pretrained_model_config(folder, **options), folder
        except NotImplementedError:
            repo_id = self.files.repo_id
            if repo_id is None or repo_id not in OFFICIAL_MODEL_NAMES or Path(repo_id).exists():
                raise
            return loading.get_pretrained_model_config(repo_id, **options), repo_id

    @contextmanager
    def _config_folder(self) -> Iterator[str]:
        """A folder with the configuration alone, whose path gives no hints.

        TransformerLens guesses architectures from substrings of a path ("llama", "gemma"), and GPT-2's configuration lacks ``n_ctx`` when
        saved by transformers 5.
        """
        config = self.hf_model.config.to_dict()
        config["architectures"] = [self._architecture]
        config.setdefault("n_ctx", self._context(1024))
        with tempfile.TemporaryDirectory(prefix="model_") as folder:
            type(self.hf_model.config).from_dict(config).save_pretrained(folder)
            yield folder


def _has_post_norms(cfg: Any) -> bool:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    return cfg.original_architecture in POST_NORM_ARCHITECTURES


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
