"""What is known about a loaded SAE or transcoder, and the way to sae-lens.

lensplorer hands out sae-lens' own objects. What their configuration does not say (release, file, labels) is kept beside them and asked for
with ``sae_info``, as ``model_info`` does for models.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lensplorer.arguments import expected
from lensplorer.errors import SAEError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: An SAE or transcoder of sae-lens, or another object with its ``encode``, ``decode``, ``W_dec`` and ``cfg``.
SAE: TypeAlias = Any

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")

#: What sae-lens says aloud when it loads, and our audit decides instead.
_ALREADY_AUDITED = (
    ".*non-empty model_from_pretrained_kwargs.*",
    ".*norm_scaling_factor not found.*",
    ".*summing all decoders together.*",
    ".*zero-element tensors.*",
)


@dataclass(frozen=True)
class SAEInfo:
    """What is known about an SAE, shown on the page and written into each result's attrs.

    Attributes:
        name: how to say it: ``"release/sae_id"``, a folder, or ``"repo_id/filename"``.
        architecture: sae-lens' name, e.g. ``"jumprelu"``.
        hook: the activation it encodes, under TransformerLens' name.
        hook_out: for a transcoder the activation that it predicts, else None.
        layer: block of ``hook``; None when the name has none.
        model_name: the model it was trained on, as its metadata call it; None if they do not say.
        d_in, d_out, d_sae: width of what it reads, of what it predicts, and number of features.
        release, sae_id, revision: under which it was loaded, where it was.
        neuronpedia_id: e.g. ``"gpt2-small/8-res-jb"``.
        expected_l0: active features per token as the release states; None if it does not.
        labels_path: labels stored beside the weights, or given with them.
        reconstructs: False for a cross-layer transcoder cut into layers: features only, no reconstruction.
    """

    name: str
    architecture: str
    hook: str
    hook_out: str | None
    layer: int | None
    model_name: str | None
    d_in: int
    d_out: int
    d_sae: int
    release: str | None = None
    sae_id: str | None = None
    revision: str | None = None
    neuronpedia_id: str | None = None
    expected_l0: float | None = None
    labels_path: Path | None = None
    reconstructs: bool = True


def sae_info(sae: SAE) -> SAEInfo:
    """The ``SAEInfo`` of an SAE, made from its configuration when it was not loaded by ``load_sae``.

    >>> import lensplorer as lp
    >>> lp.sae_info(lp.load_sae("storyworld", "resid_2")).hook
    'blocks.2.hook_resid_pre'

    Raises:
        ArgumentError: it is no SAE.
        SAEError: its metadata name no hook.
    """
    info = getattr(sae, "lensplorer_info", None)
    if isinstance(info, SAEInfo):
        return info
    expected("sae_info", "sae", "SAE", sae)
    return describe(sae)


def describe(sae: Any, *, name: str | None = None, **facts: Any) -> SAEInfo:
    """The ``SAEInfo`` in an SAE's own configuration, with further ``facts`` about where it came from."""
    cfg: Any = getattr(sae, "cfg", None)
    metadata = getattr(cfg, "metadata", None)
    if metadata is None or not hasattr(sae, "encode"):
        raise SAEError(f"Expected an SAE of sae-lens (from load_sae), got {type(sae).__name__}.")
    _check_settings(cfg, metadata, name or sae.get_name())
    hook = metadata.hook_name
    if not hook:
        raise SAEError(f"The SAE {name or sae.get_name()!r} does not say which activation it reads: give it as hook='blocks.8.hook_resid_pre'.")
    match = _BLOCK.search(hook)
    return SAEInfo(
        name=name or f"{metadata.model_name or 'custom'}/{hook}",
        architecture=cfg.architecture(),
        hook=hook,
        hook_out=metadata.hook_name_out or None,
        layer=int(match.group(1)) if match else None,
        model_name=metadata.model_name or None,
        d_in=int(cfg.d_in),
        d_out=int(getattr(cfg, "d_out", cfg.d_in)),
        d_sae=int(cfg.d_sae),
        **{"neuronpedia_id": metadata.neuronpedia_id or None, **facts},
    )


def _check_settings(cfg: Any, metadata: Any, name: str) -> None:
    """A file may say anything, and sae-lens takes it as it is.

    Raises:
        SAEError: a setting is of another type, or out of range.
    """
    d_sae = cfg.d_sae
    whole = {"d_in": cfg.d_in, "d_sae": d_sae}
    if cfg.architecture() == "topk":
        whole["k"] = cfg.k
    for key, value in whole.items():
        most = d_sae if key == "k" else None
        if type(value) is not int or value < 1 or (most is not None and value > most):
            raise SAEError(f"The SAE {name!r} has {key} = {value!r}: expected a whole number from 1{f' to {most}, its features' if most else ''}.")
    for key, (kind, wanted) in _METADATA.items():
        value = getattr(metadata, key, None)
        if value is not None and not isinstance(value, kind):
            raise SAEError(f"The SAE {name!r} has {key} = {value!r}: expected {wanted}.")


_METADATA: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("hook_name", "hook_name_out", "hf_hook_name", "model_name", "neuronpedia_id"), (str, "a text")),
    **dict.fromkeys(("context_size", "hook_head_index"), (int, "a whole number")),
    "prepend_bos": (bool, "true or false"),
    "model_from_pretrained_kwargs": (dict, "a table of options"),
}


def sae_lens() -> Any:
    """The sae-lens package, imported when first needed (it takes seconds).

    Raises:
        SAEError: it is not installed; the message says how.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports what TransformerLens has renamed
            import sae_lens as package
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "sae_lens":
            raise
        raise SAEError('SAE features need sae-lens: pip install "lensplorer[sae]".') from error
    return package


@contextmanager
def quiet_sae_lens() -> Iterator[None]:
    """Silence the reminders of sae-lens that the audit turns into checks."""
    with warnings.catch_warnings():
        for message in _ALREADY_AUDITED:
            warnings.filterwarnings("ignore", message=f"(?s){message}", category=UserWarning)
        yield
