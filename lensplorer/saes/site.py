"""Where an SAE reads in a model, and how the model's own activation becomes the one that the SAE was trained on.

The hooks of a loaded model differ from those of the model an SAE was trained on in three ways, each undone here exactly or refused:

- **Centred writing weights** (``center_writing_weights``). Every matrix that writes to the residual stream then has mean 0 over d_model,
  so each activation of the stream is the raw one minus its own mean over d_model. That is what is encoded here; when an activation is
  replaced its mean is put back. Only models with LayerNorm, which takes that mean out again, can be centred.
- **The MLP's input** (``mlp.hook_in``) is the norm's output with its weight and bias. HookedTransformer has no such hook: it is
  ``ln2.hook_normalized · w + b`` on raw weights, and ``ln2.hook_normalized`` itself where the SAE was trained on folded ones. ``hook_normalized``
  lies before weight and bias on raw and folded models alike, so it needs nothing.
- **Names**: ``hook_mlp_in`` is the residual on its way into ``ln2``; ``mlp.hook_out`` is ``hook_mlp_out`` where no norm follows the MLP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import SAEError, did_you_mean
from lensplorer.models import model_info
from lensplorer.norms import read_norm
from lensplorer.running import hook_names
from lensplorer.saes.info import SAE, sae_info

if TYPE_CHECKING:
    from lensplorer.models import LensModel

#: Activations of the residual stream, which centring the writing weights centres.
_IN_STREAM = re.compile(r"(?:^hook_(?:embed|pos_embed)|\.hook_(?:resid_pre|resid_mid|resid_post|attn_out|mlp_out))$")
_PER_HEAD = re.compile(r"\.attn\.hook_[qkvz]$")
_MLP_INPUT = re.compile(r"\.(?:mlp\.hook_in|ln2\.hook_out)$")


@dataclass(frozen=True, eq=False)
class Site:
    """Where an SAE meets a model.

    Attributes:
        read: the activation to encode, a hook of the model.
        write: the activation that the reconstruction stands for: ``read``, or what a transcoder predicts.
        centre_input, centre_output: subtract the mean over d_model, as centred writing weights would.
        weight, bias: of the norm between ``read`` and the true input of the MLP, else None. [d_model]
        head: encode this head alone.
        flatten_input, flatten_output: join heads, [position, head, d_head] → [position, head · d_head]; some SAEs of heads join them themselves.
    """

    read: str
    write: str
    centre_input: bool = False
    centre_output: bool = False
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    head: int | None = None
    flatten_input: bool = False
    flatten_output: bool = False

    @property
    def transcoder(self) -> bool:
        return self.read != self.write

    def input(self, activation: torch.Tensor) -> torch.Tensor:
        """What the SAE encodes, of the model's ``read`` activation. [..., d_in]"""
        if self.centre_input:
            activation = activation - activation.mean(-1, keepdim=True)
        if self.weight is not None:
            activation = activation * self.weight
        if self.bias is not None:
            activation = activation + self.bias
        if self.head is not None:
            return activation[..., self.head, :]
        return activation.flatten(-2) if self.flatten_input else activation

    def target(self, activation: torch.Tensor) -> torch.Tensor:
        """What the reconstruction should equal, of the model's ``write`` activation. [..., d_out]"""
        if self.centre_output:
            activation = activation - activation.mean(-1, keepdim=True)
        if self.head is not None and not self.transcoder:
            return activation[..., self.head, :]
        return activation.flatten(-2) if self.flatten_output else activation

    def put(self, activation: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """The ``write`` activation with what the SAE accounts for replaced; what it never saw (a mean, other heads) stays."""
        reconstruction = reconstruction.to(activation.dtype)
        if self.centre_output:
            reconstruction = reconstruction + activation.mean(-1, keepdim=True)
        if not self.transcoder and self.head is not None:
            replaced = activation.clone()
            replaced[..., self.head, :] = reconstruction
            return replaced
        return reconstruction.reshape(activation.shape)


def find_site(model: LensModel, sae: SAE) -> Site:
    """Where ``sae`` meets ``model``.

    Raises:
        SAEError: the model has no such activation, or not with the weight processing that the SAE was trained on.
    """
    info = sae_info(sae)
    metadata = sae.cfg.metadata
    wanted = dict(metadata.model_from_pretrained_kwargs or {})
    site = _input_site(model, sae, wanted)
    site = replace(site, write=_output_hook(model, info.hook_out) if info.hook_out else site.read)
    centred = bool(wanted.get("center_writing_weights")) and _is_layer_norm(model)
    head = metadata.hook_head_index
    n_heads = int(model.cfg.n_heads)
    if head is not None and not 0 <= head < n_heads:
        raise SAEError(f"The SAE {info.name!r} reads head {head}, and {model_info(model).name!r} has heads 0 to {n_heads - 1}.")
    joins_itself = sae.cfg.reshape_activations != "none"
    return replace(
        site,
        centre_input=centred and bool(_IN_STREAM.search(site.read)),
        centre_output=centred and bool(_IN_STREAM.search(site.write)),
        head=int(head) if head is not None else None,
        flatten_input=head is None and bool(_PER_HEAD.search(site.read)) and not joins_itself,
        flatten_output=head is None and bool(_PER_HEAD.search(site.write)),
    )


@expects
def sae_reads(model: LensModel, saes: SAE | Iterable[SAE]) -> tuple[str, ...]:
    """The activations that features of these SAEs need: ``run_trace(model, prompt, reads=sae_reads(model, saes))``.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> lp.sae_reads(model, sae)
    ('blocks.2.hook_resid_pre',)

    Raises:
        SAEError: one of them has no place in this model.
    """
    several = saes if isinstance(saes, (list, tuple)) else [saes]
    sites = [find_site(model, sae) for sae in several]
    return tuple(dict.fromkeys(name for site in sites for name in (site.read, site.write)))


def _input_site(model: LensModel, sae: SAE, wanted: dict[str, Any]) -> Site:
    info, names = sae_info(sae), hook_names(model)
    hook = re.sub(r"^(blocks\.\d+)\.hook_([qkvz])$", r"\1.attn.hook_\2", info.hook)
    before_norm = str(sae.cfg.metadata.hf_hook_name or "").endswith("layernorm.output")
    if hook.endswith(".hook_mlp_in"):
        # Registered for the output of Hugging Face's norm, which is not what TransformerLens calls by this name.
        hook = hook.replace(".hook_mlp_in", ".mlp.hook_in" if before_norm else ".hook_resid_mid")
    if _MLP_INPUT.search(hook):
        return _mlp_input(model, info.name, hook, wanted)
    if hook not in names:
        raise SAEError(f"The SAE {info.name!r} reads {info.hook!r}, which {model_info(model).name!r} does not have.{did_you_mean(hook, names)}")
    return Site(hook, hook)


def _mlp_input(model: LensModel, name: str, hook: str, wanted: dict[str, Any]) -> Site:
    """The true input of an MLP, folded or not as the SAE was trained."""
    info, names = model_info(model), hook_names(model)
    block = hook.split(".")[1]
    normalised = f"blocks.{block}.ln2.hook_normalized"
    if normalised not in names:
        raise SAEError(f"The SAE {name!r} reads the input of MLP {block}, and {info.name!r} has no {normalised!r} there.")
    if wanted.get("fold_ln"):
        return Site(normalised, normalised)
    if hook in names:
        return Site(hook, hook)
    if info.processing != "none":
        raise SAEError(
            f"The SAE {name!r} was trained on raw weights (fold_ln=False) at {hook!r}; {info.name!r} is loaded with folded norms"
            " (processing='default'), where that activation no longer exists. Reload it: load_model(name, processing='none'),"
            " or model_for_sae(sae, model=model)."
        )
    norm = read_norm(model.blocks[int(block)].ln2, model.cfg)  # type: ignore[attr-defined]
    return Site(normalised, normalised, weight=norm.weight if norm else None, bias=norm.bias if norm else None)


def _output_hook(model: LensModel, hook: str) -> str:
    names = hook_names(model)
    plain = hook.replace(".mlp.hook_out", ".hook_mlp_out")
    block = plain.split(".hook_mlp_out")[0]
    if hook not in names and plain in names and f"{block}.ln2_post.hook_scale" not in names:
        return plain
    if hook not in names:
        raise SAEError(f"This transcoder predicts {hook!r}, which {model_info(model).name!r} does not have.{did_you_mean(hook, names)}")
    return hook


def _is_layer_norm(model: LensModel) -> bool:
    """LayerNorm takes the mean of the stream out again, so it can be centred; under RMSNorm TransformerLens leaves weights as they are."""
    return str(getattr(model.cfg, "normalization_type", "") or "").startswith("LN")
