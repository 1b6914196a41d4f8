"""Tiny SAEs of every architecture with random weights, made where a test asks for them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from lensplorer.models import model_info
from lensplorer.saes.info import sae_lens

D_MODEL, D_SAE = 32, 96
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
RESIDUAL = "blocks.1.hook_resid_post"
MLP_IN, MLP_OUT = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"


def make(architecture: str, model_name: str | None, *, hook: str | None = None, seed: int = 0, d_in: int = D_MODEL, **settings: Any) -> Any:
    """A random SAE of sae-lens' own class; ``settings`` are of its configuration, ``metadata`` among them."""
    SAE = sae_lens().SAE
    transcoder = "transcoder" in architecture
    metadata = {"model_name": model_name, "hook_name": hook or (MLP_IN if transcoder else RESIDUAL), "prepend_bos": True, "context_size": 64}
    if transcoder:
        metadata["hook_name_out"] = MLP_OUT
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": not transcoder,
        "normalize_activations": "none",
        **({"d_out": D_MODEL} if transcoder else {}),
        **({"k": 8} if architecture == "topk" else {}),
        **{key: value for key, value in settings.items() if key != "metadata"},
        "metadata": {**metadata, **settings.get("metadata", {})},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sae = SAE.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = {"W_enc": d_in**-0.5, "W_dec": D_SAE**-0.5, "W_skip": 0.1, "threshold": 0.1}.get(name, 0.05)
            parameter.copy_(scale * (noise.abs() if name == "threshold" else noise))
    return sae.eval().requires_grad_(False)


def of(model: Any, architecture: str = "standard", **settings: Any) -> Any:
    """As ``make``, for a loaded tiny model."""
    return make(architecture, model_info(model).name, **settings)


def save(sae: Any, folder: Path) -> Path:
    """Save in sae-lens' format."""
    sae.save_model(folder)
    return folder


def hub_cache(home: Path, repo_id: str, files: dict[str, Any], *, revision: str = "main") -> None:
    """A hub cache under ``home`` (for HF_HOME) that holds ``files``: path → bytes, a folder's file to copy, or an object to write as JSON."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for name, content in files.items():
        path = root / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.write_bytes(content.read_bytes())
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
