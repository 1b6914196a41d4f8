"""Trains the SAEs of `storyworld` with sae-lens, recalibrates their thresholds, measures and labels them.

    python -m lensplorer.storyworld.sae_training

BatchTopK (Bussmann et al. 2024), exported as JumpReLU. The threshold that training leaves behind is a moving average of batch minima
and gives the wrong number of active features, so it is set afresh to give the intended mean on documents apart. Activations are centred
first: most of their norm is their mean, and features spent on it die.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file

from lensplorer.storyworld import DATA, activations, model_path
from lensplorer.storyworld.evaluate import load

WIDTH = 8  # features per dimension of the input
TARGET_L0 = 29.0
TOKENS, EPOCHS, BATCH = 1_000_000, 1, 1024
TRAIN_SEED, CALIBRATION_SEED, TEST_SEED = 70_001, 80_001, 90_002
PROCESSING = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}


@dataclass(frozen=True)
class Site:
    """Where an SAE reads, and for a transcoder where it writes."""

    hook: str
    hook_out: str | None = None

    @property
    def target(self) -> str:
        return self.hook_out or self.hook


SITES = {
    "resid_1": Site("blocks.1.hook_resid_pre"),
    "resid_2": Site("blocks.2.hook_resid_pre"),
    "resid_3": Site("blocks.3.hook_resid_pre"),
    "mlp_out_0": Site("blocks.0.hook_mlp_out"),  # the MLP that the model needs most: facts arrive there
    "transcoder_0": Site("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"),
}


class TrainingTranscoder(BatchTopKTrainingSAE):
    """A BatchTopK SAE whose batches hold input and target side by side: it encodes the one and is held to the other.  [batch, 2 d_in]"""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        source, target = step_input.sae_in.chunk(2, dim=-1)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(source)
        out = self.decode(feature_acts)
        step_input.sae_in = target
        mse = (out - target).pow(2).sum(-1).mean()
        losses = {"mse_loss": mse, **self.calculate_aux_loss(step_input, feature_acts, hidden_pre, out)}
        self.update_topk_threshold(feature_acts)
        loss = torch.stack(list(losses.values())).sum()
        return TrainStepOutput(sae_in=target, sae_out=out, feature_acts=feature_acts, hidden_pre=hidden_pre, loss=loss, losses=losses, metrics={})


def shuffled(parts: list[torch.Tensor], batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of rows in random order without end, the parts side by side, in float32."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(parts[0]), generator=generator)
        for chunk in torch.split(order, batch)[:-1]:
            yield torch.cat([part[chunk].float() for part in parts], dim=-1)


def normalisation(x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean of activations, and the scale that brings their distance from it to the square root of the width."""
    sample = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:100_000]].float()
    mean = sample.mean(0)
    return mean, float(x.shape[1] ** 0.5 / (sample - mean).norm(dim=-1).mean())


def train_sae(site: Site, source: torch.Tensor, target: torch.Tensor, *, seed: int = 0) -> BatchTopKTrainingSAE:
    """Trains one SAE or transcoder on activations, centred and scaled; both are folded into its weights.  [token, d_in], [token, d_in]"""
    torch.manual_seed(seed)
    d_in, transcoder = source.shape[1], site.hook_out is not None
    (mean_in, scale_in), (mean_out, scale_out) = normalisation(source), normalisation(target)
    config = BatchTopKTrainingSAEConfig(
        d_in=d_in, d_sae=WIDTH * d_in, k=TARGET_L0, apply_b_dec_to_input=not transcoder, normalize_activations="none",
        aux_loss_coefficient=1.0, decoder_init_norm=0.1,
    )  # fmt: skip
    sae = (TrainingTranscoder if transcoder else BatchTopKTrainingSAE)(config)
    steps = EPOCHS * len(source) // BATCH
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=1.5e-3, lr_end=1e-5, lr_warm_up_steps=50,
        lr_decay_steps=steps // 2, dead_feature_window=60, feature_sampling_window=10 * steps,
    )  # fmt: skip
    parts = [source, target] if transcoder else [source]
    mean = torch.cat([mean_in, mean_out] if transcoder else [mean_in])
    scale = torch.cat([torch.full((d_in,), s) for s in ((scale_in, scale_out) if transcoder else (scale_in,))])
    SAETrainer(trainer_config, sae, ((batch - mean) * scale for batch in shuffled(parts, BATCH, seed))).fit()
    with torch.no_grad():  # x' = (x - mean) · scale, on both sides
        sae.W_enc.data *= scale_in
        if transcoder:
            sae.b_enc.data -= mean_in @ sae.W_enc
        sae.W_dec.data /= scale_out
        sae.b_dec.data = sae.b_dec / scale_out + mean_out
        sae.topk_threshold /= scale_out  # features are in units of the decoder's norm
    return sae


def export(sae: BatchTopKTrainingSAE, site: Site, folder: Path, calibration: torch.Tensor) -> Any:
    """Saves as a JumpReLU SAE or transcoder in float16, with the threshold that gives TARGET_L0, and loads it back."""
    metadata = {
        "model_name": "storyworld", "hook_name": site.hook, "hook_name_out": site.hook_out, "prepend_bos": True, "context_size": 512,
        "model_from_pretrained_kwargs": PROCESSING, "model_class_name": "HookedTransformer",
        "dataset_path": f"lensplorer.storyworld.grammar.corpus(seed={TRAIN_SEED})", "training_tokens": TOKENS * EPOCHS,
        "exclude_special_tokens": False, "sae_lens_architecture_trained": "batchtopk", "k": TARGET_L0,
    }  # fmt: skip
    for key, value in metadata.items():
        if value is not None:
            sae.cfg.metadata[key] = value
    _, config_path = sae.save_inference_model(folder)
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if site.hook_out:
        config |= {"architecture": "jumprelu_transcoder", "d_out": config["d_in"], "apply_b_dec_to_input": False}
    config_path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return calibrate(folder, calibration)


def calibrate(folder: Path, calibration: torch.Tensor) -> Any:
    """Sets the threshold of an exported SAE so that TARGET_L0 features fire on `calibration`.  [token, d_in]"""
    weights_path, config = folder / "sae_weights.safetensors", json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    weights = {key: value.half().float() for key, value in load_file(weights_path).items()}
    x = calibration.float() - (weights["b_dec"] if config["apply_b_dec_to_input"] else 0)
    pre = (x @ weights["W_enc"] + weights["b_enc"]).flatten()
    threshold = pre.kthvalue(pre.numel() - int(TARGET_L0 * len(calibration))).values.clamp(min=0)
    weights["threshold"] = torch.full_like(weights["b_enc"], float(threshold))
    save_file({key: value.half().contiguous() for key, value in weights.items()}, weights_path)
    return load_exported(folder)


def load_exported(folder: Path) -> Any:
    """An SAE or transcoder from its folder, through sae-lens."""
    from sae_lens import SAE

    with warnings.catch_warnings():  # sae-lens reminds of the weight processing, which these hooks do not depend on
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs", category=UserWarning)
        return SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()


@torch.no_grad()
def measure(model: Any, tok: Any, sae: Any, site: Site, *, tokens: int = 40_000, seed: int = TEST_SEED) -> dict[str, float]:
    """Explained variance, mean L0, share of features that never fire, and loss recovered when spliced in (zero ablation = 0)."""
    names = list({site.hook, site.target})
    found, _ = activations.collect(model, tok, names, seed=seed, tokens=tokens)
    source, target = found[site.hook].float(), found[site.target].float()
    features = torch.cat([sae.encode(part) for part in torch.split(source, 4096)])
    error = target - torch.cat([sae.decode(part) for part in torch.split(features, 4096)])
    fired = (features > 0).any(0)

    def spliced(edit: activations.Edit | None) -> float:
        total = count = 0.0
        for ids, _, scored in activations.document_batches(tok, seed=seed, tokens=tokens // 2):
            with activations.watching(model, [site.hook]) as seen:

                def replace(x: torch.Tensor) -> torch.Tensor:
                    if edit is None:
                        return x
                    return edit(seen[site.hook] if site.hook_out else x)  # a transcoder needs its input when its output is replaced

                with activations.splicing(model, site.target, replace):
                    logits = model(ids).logits
            losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            total, count = total + float(losses[scored[:, 1:]].sum()), count + int(scored[:, 1:].sum())
        return total / count

    clean, sparse, zero = spliced(None), spliced(sae), spliced(torch.zeros_like)
    return {
        "explained_variance": float(1 - error.pow(2).sum() / (target - target.mean(0)).pow(2).sum()),
        "l0": float((features > 0).float().sum(-1).mean()),
        "dead": float(1 - fired.float().mean()), "features": features.shape[1],
        "loss_clean": clean, "loss_spliced": sparse, "loss_zero": zero, "loss_recovered": (zero - sparse) / (zero - clean),
    }  # fmt: skip


@torch.no_grad()
def label(model: Any, tok: Any, sae: Any, site: Site, *, tokens: int = 150_000, examples: int = 4, top: int = 8) -> dict[str, Any]:
    """Each feature's top unembedded tokens and its strongest examples, the active token in «»; how often it fires."""
    gamma = model.transformer.ln_f.weight
    direction = sae.W_dec - sae.W_dec.mean(-1, keepdim=True)
    promoted = (direction * gamma) @ model.lm_head.weight.T
    # a token's mean over features is what every direction promotes: taken off
    names = [[tok.decode([i]) for i in row] for row in (promoted - promoted.mean(0)).topk(top).indices.tolist()]
    found, ids = activations.collect(model, tok, [site.hook], seed=TEST_SEED + 1, tokens=tokens)
    features = torch.cat([sae.encode(part.float()).half() for part in torch.split(found[site.hook], 4096)])
    density = (features > 0).float().mean(0)
    values, where = features.float().T.contiguous().topk(64, dim=1)
    texts = ids.tolist()
    labels = []
    for feature in range(features.shape[1]):
        seen: dict[str, float] = {}
        for value, at in zip(values[feature].tolist(), where[feature].tolist(), strict=True):
            if value <= 0 or len(seen) == examples:
                break
            low = max([0, at - 10, *(i + 1 for i in range(max(0, at - 10), at) if texts[i] == 0)])
            high = next((i for i in range(at + 1, min(at + 4, len(texts))) if texts[i] == 0), min(at + 4, len(texts)))
            text = f"{tok.decode(texts[low:at])}«{tok.decode(texts[at : at + 1])}»{tok.decode(texts[at + 1 : high])}"
            seen.setdefault(text, round(value, 3))
        labels.append({"promotes": names[feature], "examples": list(seen.items()), "density": round(float(density[feature]), 5)})
    return {"format": "feature index → promotes, examples [text with the active token in «», activation], density", "features": labels}


def train_all(out: Path = DATA / "saes", only: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Trains, exports, measures and labels each; writes `measured.json` beside them."""
    model, tok = load(model_path("storyworld"))
    model.set_attn_implementation("sdpa")
    sites = {name: site for name, site in SITES.items() if not only or name in only}
    names = sorted({name for site in sites.values() for name in (site.hook, site.target)})
    found, _ = activations.collect(model, tok, names, seed=TRAIN_SEED, tokens=TOKENS)
    calibration, _ = activations.collect(model, tok, names, seed=CALIBRATION_SEED, tokens=20_000)
    path = out / "measured.json"
    measured: dict[str, dict[str, Any]] = {}
    for name, site in sites.items():
        sae = export(train_sae(site, found[site.hook], found[site.target]), site, out / name, calibration[site.hook])
        figures: dict[str, Any] = {"hook": site.hook, "hook_out": site.hook_out, **measure(model, tok, sae, site)}
        measured = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | {name: figures}
        (out / name / "labels.json").write_text(json.dumps(label(model, tok, sae, site), ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        path.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        _log(f"{name}: {json.dumps(measured[name])}")
    return measured


def _log(line: str) -> None:
    import sys

    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*")
    train_all(only=parser.parse_args().only)


if __name__ == "__main__":
    main()
