"""Models: one loader, two backends, and a proof that they compute what Hugging Face computes.

``load_model`` loads a checkpoint with transformers, converts it to a ``HookedTransformer``, runs both on a probe and keeps the
difference. Where the conversion fails or disagrees, the ``TransformerBridge`` (which wraps the Hugging Face modules themselves and has the
same hook names) takes over and says why; where that fails too, the model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from lensplorer.arguments import expected, expects
from lensplorer.catalogue import default_model_name, find_model
from lensplorer.errors import ModelError, did_you_mean

BACKENDS = ("auto", "hooked", "bridge")
PROCESSINGS = ("default", "none")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64", "double": "float64"}


@runtime_checkable
class LensModel(Protocol):
    """What lensplorer asks of a model; ``HookedTransformer`` and ``TransformerBridge`` both satisfy it.

    >>> from lensplorer import load_model
    >>> isinstance(load_model("storyworld"), LensModel)
    True
    """

    cfg: Any
    tokenizer: Any

    @property
    def hook_dict(self) -> dict[str, Any]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def hooks(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a loaded model, shown on the page and written into each result's attrs.

    >>> info = model_info(load_model("storyworld"))
    >>> info.architecture, info.backend, info.difference < 5e-5
    ('GPT2LMHeadModel', 'hooked', True)

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
    """The ``ModelInfo`` of a model, made from its configuration when it was not loaded by ``load_model``.

    >>> model_info(load_model("storyworld")).n_ctx
    512

    Raises:
        ArgumentError: it is no model.
    """
    info = getattr(model, "lensplorer_info", None)
    if isinstance(info, ModelInfo):
        return info
    expected("model_info", "model", "LensModel", model)
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


@expects
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
        name: a built-in model (``"storyworld"``, ``"storyworld-mini"``), a hub name (``"gpt2"``, ``"Qwen/Qwen2.5-0.5B"``), a folder in
            Hugging Face format (``"./my_model"``), or a GGUF file (``"./model.gguf"``, a folder with one, or
            ``"owner/repository/model.gguf"`` on the hub; needs the extra ``gguf``). None: the environment's ``LENSPLORER_MODEL``, else
            ``"storyworld"``.
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
        ModelError: unknown name, bad option, a checkpoint that cannot be read, a GGUF file of which something would be lost, or a model that
            neither backend computes correctly.

    Cost: reads the weights once; twice the model's memory until the probe is done. A GGUF file's are unpacked to ``dtype``: 135 M parameters
        take some 10 s more.
    """
    if backend not in BACKENDS:
        raise ModelError(f"Unknown backend {backend!r}.{did_you_mean(backend, BACKENDS)}")
    if processing not in PROCESSINGS:
        raise ModelError(f"Unknown processing {processing!r}.{did_you_mean(processing, PROCESSINGS)}")
    from lensplorer.backends import Loader, load_hugging_face

    torch_dtype, torch_device = resolve_dtype(dtype), resolve_device(device)
    files = find_model(name if name is not None else default_model_name(), revision=revision)
    with torch.inference_mode(False):  # weights made inside of it have no gradients
        hf_model, tokenizer = load_hugging_face(files, torch_dtype, torch_device, trust_remote_code)
        return Loader(files, hf_model, tokenizer, torch_dtype, torch_device, processing, verify).load(backend)


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
