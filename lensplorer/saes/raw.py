"""SAEs and transcoders from a bare weights file, as circuit-tracer and the first seed's ``[[sae]]`` tables name them.

What a file must say, and where it is looked for, in this order: the caller's own words; ``cfg.json`` beside it; ``config.yaml`` beside it or
at the root of its repository (circuit-tracer's: model_name, feature_input_hook, feature_output_hook); the releases known here. What nobody says
is refused, above all the activation function: a TopK SAE read as a ReLU one gives hundreds of features too many.

Facts of the formats, which decide shapes and hooks:

- circuit-tracer stores ``W_enc`` as [d_sae, d_in], and older files ``W_dec`` as [d_out, d_sae]; ``W_skip`` is [d_out, d_in] and acts as
  ``x · W_skip.T``, Gemma Scope 2's ``affine_skip_connection`` is that turned. A file without thresholds is ReLU. Orientation is told here from
  the biases, [d_sae] and [d_out].
- The Llama 3.2 skip transcoders of the seed read ``hook_resid_mid``, the MLP's input *before* its norm, as circuit-tracer's own configuration
  says; others (Gemma Scope, Qwen 3) read it after. They were trained without the beginning-of-text position but with it in the context.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from lensplorer.errors import SAEError, first_line
from lensplorer.saes.hub import fetch, fetch_if_there
from lensplorer.saes.info import quiet_sae_lens, sae_lens


@dataclass(frozen=True)
class RawSource:
    """What is said of a raw file: where it is, and everything that the file itself does not hold."""

    filename: str
    repo_id: str | None = None
    revision: str | None = None
    layer: int | None = None
    hook: str | None = None
    hook_out: str | None = None
    architecture: str | None = None
    k: int | None = None
    model_name: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    apply_b_dec_to_input: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.repo_id}/{self.filename}" if self.repo_id else self.filename


#: Repositories whose files say nothing of themselves. Hooks are relative to the block.
_KNOWN: dict[str, dict[str, Any]] = {
    "mntss/skip-transcoder-Llama-3.2-1B-131k-nobos": {
        "model_name": "meta-llama/Llama-3.2-1B",
        "hook": "hook_resid_mid",
        "hook_out": "hook_mlp_out",
        "architecture": "skip_transcoder",
    }
}

#: spellings of one tensor → its name here. Linear layers of torch store [out, in].
_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "w_enc": "W_enc",
    "w_dec": "W_dec",
    "w_skip": "W_skip",
    "activation_function.threshold": "threshold",
    "log_thresholds": "log_threshold",
}


def load_raw(source: RawSource, *, device: str, dtype: str) -> tuple[Any, RawSource]:
    """The SAE in a raw file, and what is now known of it.

    Raises:
        SAEError: the file cannot be had or read, lacks a tensor or has one of a wrong shape, or nobody says its hook or activation function.
    """
    path = fetch(source.repo_id, source.filename, source.revision) if source.repo_id else Path(source.filename)
    tensors = read_tensors(path, source.name)
    source = _with_known(_with_config_yaml(_with_cfg_json(source, path), path))
    layer = source.layer if source.layer is not None else _layer_in(source.filename)
    state = arrange(tensors, source.name)
    architecture = _architecture(source, state)
    if source.hook is None:
        raise SAEError(
            f"Nothing says which activation {source.name!r} reads: there is no cfg.json beside it and no config.yaml in its repository."
            " Give it: load_sae(..., hook='blocks.8.hook_resid_post'), and hook_out=... for a transcoder."
        )
    hook, hook_out = _absolute(source.hook, layer, source.name), source.hook_out and _absolute(source.hook_out, layer, source.name)
    if "transcoder" in architecture and hook_out is None:
        hook_out = f"blocks.{layer}.hook_mlp_out"
    d_in, d_sae = state["W_enc"].shape
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": dtype,
        "device": device,
        "apply_b_dec_to_input": bool(source.apply_b_dec_to_input),
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": {
            "model_name": source.model_name,
            "hook_name": hook,
            "hook_name_out": hook_out,
            "prepend_bos": source.prepend_bos,
            "context_size": source.context_size,
            "model_from_pretrained_kwargs": {"fold_ln": False} if hook.endswith("mlp.hook_in") else {},
        },
    }
    if "transcoder" in architecture:
        config["d_out"] = state["W_dec"].shape[1]
    if source.k is not None:
        config["k"] = int(source.k)
    return build(config, state, source.name), source


def build(config: dict[str, Any], state: dict[str, torch.Tensor], name: str) -> Any:
    """sae-lens' own object of this configuration with these tensors.

    Raises:
        SAEError: an unknown architecture, or a tensor missing, left over or misshapen.
    """
    package = sae_lens()
    try:
        with quiet_sae_lens():
            sae = package.SAE.from_dict(config)
    except (KeyError, ValueError, TypeError) as error:
        raise SAEError(f"sae-lens cannot make the SAE of {name!r}: {error}") from error
    wanted = {key: tuple(value.shape) for key, value in sae.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} is not of a {config['architecture']} SAE" for key in given if key not in wanted]
    problems += [f"{key} is {list(given[key])} and should be {list(wanted[key])}" for key in wanted if key in given and wanted[key] != given[key]]
    if problems:
        raise SAEError(f"The weights of {name!r} do not fit: {'; '.join(problems)}.")
    sae.load_state_dict({key: value.to(sae.dtype) for key, value in state.items()})
    return sae


def read_tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors or npz file, under the names used here.

    Raises:
        SAEError: another kind of file (a pickle is never read), or a corrupt one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif path.suffix == ".npz":
            import numpy as np

            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            raise SAEError(f"{name!r} is neither .safetensors nor .npz; pickled weights (.pt, .bin) can run code and are not read.")
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, SafetensorError) as error:
        raise SAEError(f"The weights {name!r} cannot be read: {first_line(error)}") from error
    found = {_NAMES.get(key, _NAMES.get(key.lower(), key)): tensor for key, tensor in tensors.items()}
    if "affine_skip_connection" in found:
        found["W_skip"] = found.pop("affine_skip_connection").T
    if "log_threshold" in found:
        found["threshold"] = found.pop("log_threshold").exp()
    return found


def arrange(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors with W_enc [d_in, d_sae] and W_dec [d_sae, d_out], turned as the biases tell.

    Raises:
        SAEError: one is missing, or its shape fits neither way, or both (as many features as dimensions).
    """
    missing = [key for key in ("W_enc", "W_dec", "b_enc", "b_dec") if key not in tensors]
    if missing:
        raise SAEError(f"{name!r} has no {', '.join(missing)}: it holds {', '.join(sorted(tensors)) or 'nothing'}.")
    d_sae, d_out = tensors["b_enc"].numel(), tensors["b_dec"].numel()
    W_enc, W_dec = tensors["W_enc"], tensors["W_dec"]
    if W_enc.ndim != 2 or W_dec.ndim != 2 or d_sae not in W_enc.shape or sorted(W_dec.shape) != sorted((d_sae, d_out)):
        raise SAEError(
            f"The shapes in {name!r} do not belong together: W_enc {list(W_enc.shape)}, W_dec {list(W_dec.shape)}, b_enc [{d_sae}], b_dec [{d_out}];"
            " expected W_enc [d_in, d_sae] and W_dec [d_sae, d_out], either way round."
        )
    if W_enc.shape[0] == W_enc.shape[1] or d_sae == d_out:
        raise SAEError(f"{name!r} has as many features as dimensions ({d_sae}), so its shapes do not tell which way round its matrices are.")
    arranged = {key: value for key, value in tensors.items() if key in ("b_enc", "b_dec", "threshold", "W_skip", "b_gate", "b_mag", "r_mag")}
    arranged["W_enc"] = W_enc if W_enc.shape[1] == d_sae else W_enc.T
    arranged["W_dec"] = W_dec if W_dec.shape[0] == d_sae else W_dec.T
    if "threshold" in arranged and arranged["threshold"].numel() == 1:
        arranged["threshold"] = arranged["threshold"].reshape(1).expand(d_sae)
    return {key: value.contiguous() for key, value in arranged.items()}


def _architecture(source: RawSource, state: dict[str, torch.Tensor]) -> str:
    transcoder = source.hook_out is not None or "W_skip" in state or "transcoder" in (source.architecture or "")
    said = source.architecture
    if "threshold" in state:
        kind = "jumprelu"
    elif said in ("topk", "gated", "standard", "relu", "transcoder", "skip_transcoder"):
        kind = said if said in ("topk", "gated") else ""
    else:
        raise SAEError(
            f"Nothing says which activation function {source.name!r} uses{f' (architecture {said!r} is not known)' if said else ''}."
            " Give it: load_sae(..., architecture='standard') for ReLU, or architecture='topk', k=32."
        )
    if not transcoder:
        return kind or "standard"
    if kind in ("topk", "gated"):
        raise SAEError(f"sae-lens has no {kind} transcoder, which {source.name!r} is said to be.")
    skip = "_skip" if "W_skip" in state else ""
    return f"{kind}{skip}_transcoder".lstrip("_")


def _with_cfg_json(source: RawSource, path: Path) -> RawSource:
    """What ``cfg.json`` beside the file says, in the words of sae-lens or of sparsify."""
    beside = str(Path(source.filename).with_name("cfg.json"))
    found = fetch_if_there(source.repo_id, beside, source.revision) if source.repo_id else path.with_name("cfg.json")
    if found is None or not found.is_file():
        return source
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
        metadata = {**config, **config.get("metadata", {})}
    except (ValueError, OSError, RecursionError, TypeError, AttributeError) as error:
        raise SAEError(f"The cfg.json of {source.name!r} cannot be read: {first_line(error)}") from error
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k") or (arguments.get("k") if isinstance(arguments, dict) else None)
    architecture = config.get("architecture") or ("topk" if k else None)
    if k and architecture in ("standard", "topk", None):
        architecture = "topk"
    return _fill(
        source,
        hook=metadata.get("hook_name"),
        hook_out=metadata.get("hook_name_out"),
        architecture=architecture,
        k=k,
        model_name=metadata.get("model_name"),
        prepend_bos=metadata.get("prepend_bos"),
        context_size=metadata.get("context_size"),
        apply_b_dec_to_input=metadata.get("apply_b_dec_to_input"),
    )


def _with_config_yaml(source: RawSource, path: Path) -> RawSource:
    """What circuit-tracer's ``config.yaml`` says; its files without thresholds are ReLU."""
    if source.repo_id:
        places = dict.fromkeys((str(Path(source.filename).with_name("config.yaml")), "config.yaml"))
        found = next(filter(None, (fetch_if_there(source.repo_id, place, source.revision) for place in places)), None)
    else:
        found = path.with_name("config.yaml")
    if found is None or not found.is_file():
        return source
    import yaml

    try:
        config = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise SAEError(f"The config.yaml of {source.name!r} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or "feature_input_hook" not in config:
        return source
    return _fill(
        source,
        hook=config["feature_input_hook"],
        hook_out=config.get("feature_output_hook"),
        model_name=config.get("model_name"),
        architecture="transcoder",
    )


def _with_known(source: RawSource) -> RawSource:
    return _fill(source, **_KNOWN.get(source.repo_id or "", {}))


def _fill(source: RawSource, **facts: Any) -> RawSource:
    """``source`` with facts added where nothing was said before.

    Raises:
        SAEError: a text is none.
    """
    for key in ("hook", "hook_out", "architecture", "model_name"):
        if not isinstance(facts.get(key), (str, type(None))):
            raise SAEError(f"What is said beside {source.name!r} has {key} = {facts[key]!r}: expected a text.")
    return replace(source, **{key: value for key, value in facts.items() if getattr(source, key) is None and value is not None})


def _absolute(hook: str, layer: int | None, name: str) -> str:
    if hook.startswith("blocks.") or hook in ("hook_embed", "hook_pos_embed"):
        return hook.format(layer=layer) if "{layer}" in hook else hook
    if layer is None:
        raise SAEError(f"Nothing says which block {name!r} belongs to: give layer=8, or a whole hook name (hook='blocks.8.{hook}').")
    return f"blocks.{layer}.{hook}"


def _layer_in(filename: str) -> int | None:
    found = re.search(r"layers?[_.](\d+)", filename)
    return int(found.group(1)) if found else None
