"""SAE and transcoder features of a trace: which fire where, how much of the activation they explain, and their path through the layers.

Reconstruction + error = activation. Explained variance is 1 - Σ‖error‖² / Σ‖activation - mean‖² over the positions counted. L0 is the mean
number of active features. Loss recovered is (zero - spliced) / (zero - clean): the model's own loss, with the reconstruction in the place
of the activation, and with nothing there. BOS and other special tokens are left out of all of them unless asked for: their activations
are so much larger that they would be most of every sum (SAELens #350).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, make_result
from lensplorer.errors import AnalysisError
from lensplorer.running import run_model
from lensplorer.saes.audit import check_sae
from lensplorer.saes.cache import FeatureCache, cache_key, feature_cache
from lensplorer.saes.codes import Codes, sparse_codes, splice_hooks, zero_hook
from lensplorer.saes.info import SAE, sae_info
from lensplorer.saes.labels import check_feature, feature_labels, neuronpedia_url
from lensplorer.saes.site import Site

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace


@analysis(reads=(), source="Bricken et al. 2023 (SAEs); Dunefsky et al. 2024 (transcoders); sae-lens' encode")
def feature_activations(
    trace: Trace,
    sae: SAE,
    *,
    k: int = 10,
    exclude: Sequence[int] | None = None,
    labels: bool | None = None,
    beyond_context: bool = False,
    cache: FeatureCache | None = None,
) -> xr.Dataset:
    """The features most active at each position.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=lp.sae_reads(model, sae))
    >>> features = lp.feature_activations(trace, sae, k=3)
    >>> features.feature.dims, bool((features.activation[-1, 0] >= features.activation[-1, 1]))
    (('position', 'rank'), True)

    Args:
        trace: of the model that the SAE was trained on, holding what ``sae_reads(model, sae)`` names.
        sae: from ``load_sae``.
        k: features per position, by absolute activation.
        exclude: positions left out of the ranking and the statistics. None: special tokens (BOS, padding, chat marks); (): none.
        labels: add the variable ``label`` (position, rank). None: where labels are stored beside the SAE; True: else the top tokens too.
        beyond_context: also for a prompt longer than the SAE saw in training.
        cache: where results are kept. None: the shared one.

    Returns:
        (position, rank): feature, index in d_sae, -1 where fewer than k are active or the position is excluded; activation, 0 or NaN there.
        (position): active, number of active features; relative_error, ‖error‖² / ‖activation‖². attrs: explained_variance (NaN for a single
        position), l0, hook, hook_out, sae, architecture, d_sae, excluded (positions and why), neuronpedia_id.

    Raises:
        SAEError: the SAE does not fit the model or the prompt; the message names both sides.
        TraceError: the trace did not read what the SAE needs.
        AnalysisError: k is below 1, or an excluded position is outside the prompt.

    Cost: position · d_in · d_sae twice (encode and decode), a millisecond when cached; with labels=True also features · d_model · d_vocab.
    """
    if k < 1:
        raise AnalysisError(f"k must be at least 1, got {k}.")
    site = check_sae(trace.model, sae, trace=trace, beyond_context=beyond_context)
    counted, said = _counted(trace, exclude)
    codes, target = _codes(trace, sae, site, cache)
    feature, activation = codes.top(k)
    feature[~counted] = -1
    activation[~counted] = np.nan
    squared_norm = target.pow(2).sum(-1).cpu().numpy()
    info = sae_info(sae)
    variables = {
        "feature": (["position", "rank"], feature),
        "activation": (["position", "rank"], activation),
        "active": (["position"], codes.l0),
        "relative_error": (["position"], codes.squared_error / np.maximum(squared_norm, 1e-30)),
    }
    if labels or (labels is None and info.labels_path is not None):
        variables["label"] = (["position", "rank"], _labels(trace, sae, feature))
    return make_result(
        trace,
        feature_activations,
        variables,
        explained_variance=explained_variance(codes, target, counted),
        l0=float(codes.l0[counted].mean()) if counted.any() else float("nan"),
        hook=info.hook,
        hook_out=info.hook_out or "",
        sae=info.name,
        architecture=info.architecture,
        d_sae=info.d_sae,
        excluded=said,
        neuronpedia_id=info.neuronpedia_id or "",
        neuronpedia_url=neuronpedia_url(info.neuronpedia_id) or "",
    )


@analysis(reads=(), source="Bricken et al. 2023; sae-lens' encode")
def feature_values(
    trace: Trace, sae: SAE, features: Sequence[int] | int, *, beyond_context: bool = False, cache: FeatureCache | None = None
) -> xr.Dataset:
    """The activation of chosen features at every position, special tokens too.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=lp.sae_reads(model, sae))
    >>> lp.feature_values(trace, sae, [3, 5]).activation.dims
    ('position', 'feature')

    Args:
        trace, sae, beyond_context, cache: as ``feature_activations``.
        features: one or several, 0 to d_sae - 1.

    Returns:
        (position, feature): activation, 0 where the feature is not active. attrs: hook, sae.

    Raises:
        SAEError: the SAE does not fit, or has no such feature. TraceError: the trace did not read what the SAE needs.

    Cost: as ``feature_activations``.
    """
    wanted = [check_feature(sae, feature) for feature in ([features] if isinstance(features, int) else features)]
    site = check_sae(trace.model, sae, trace=trace, beyond_context=beyond_context)
    codes, _ = _codes(trace, sae, site, cache)
    info = sae_info(sae)
    values = np.stack([codes.of(feature) for feature in wanted], axis=1) if wanted else np.zeros((len(trace.tokens), 0), dtype=np.float32)
    variables = {"activation": (["position", "feature"], values)}
    return make_result(trace, feature_values, variables, hook=info.hook, sae=info.name).assign_coords(feature=wanted)


@analysis(reads=(), source="Bricken et al. 2023; loss recovered as in Rajamanoharan et al. 2024")
def splice_fidelity(
    trace: Trace, sae: SAE, *, error_term: bool = False, exclude: Sequence[int] | None = None, beyond_context: bool = False
) -> xr.Dataset:
    """What the model still predicts when an SAE's reconstruction takes the place of what it reconstructs.

    >>> import lensplorer as lp
    >>> model, sae = lp.load_model("storyworld"), lp.load_sae("storyworld", "resid_2")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=lp.sae_reads(model, sae))
    >>> lp.splice_fidelity(trace, sae, error_term=True).attrs["max_logit_change"] < 1e-3  # the splice itself changes nothing
    True

    Args:
        trace: of the model that the SAE was trained on; its interventions hold in each run.
        sae: from ``load_sae``.
        error_term: add the error to the reconstruction: then no logit may change, which proves the splice.
        exclude: positions left as they are. None: special tokens; (): none.
        beyond_context: as ``feature_activations``.

    Returns:
        (position): loss_clean, loss_spliced and loss_zero of the token there, nats (NaN at the first); kl of the predictions after it from
        clean to spliced, nats. attrs: loss_recovered = (zero - spliced) / (zero - clean) of the mean losses (NaN where zero is no worse than
        clean); mean losses; max_logit_change; hook, hook_out, sae, excluded.

    Raises:
        SAEError: as ``feature_activations``; or the SAE has no reconstruction.

    Cost: two forward passes.
    """
    site = check_sae(trace.model, sae, trace=trace, beyond_context=beyond_context)
    counted, said = _counted(trace, exclude)
    keep = torch.from_numpy(~counted)
    _, hooks = splice_hooks(sae, site, error_term=error_term, keep=keep)
    tokens = trace.tokens[None]
    runs = [hooks, [zero_hook(site, keep=keep)]]
    spliced, zero = (run_model(trace.model, tokens, interventions=trace.interventions, hooks=run).logits[0] for run in runs)
    clean = trace.logits.detach()
    losses = {name: _losses(z, trace.tokens) for name, z in (("clean", clean), ("spliced", spliced), ("zero", zero))}
    means = {name: float(values[1:].mean()) if len(values) > 1 else float("nan") for name, values in losses.items()}
    room = means["zero"] - means["clean"]
    log_p, log_q = clean.float().log_softmax(-1), spliced.float().log_softmax(-1)
    info = sae_info(sae)
    return make_result(
        trace,
        splice_fidelity,
        {
            **{f"loss_{name}": (["position"], values) for name, values in losses.items()},
            "kl": (["position"], (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)),
        },
        units={"loss_clean": "nats", "loss_spliced": "nats", "loss_zero": "nats", "kl": "nats"},
        loss_recovered=(means["zero"] - means["spliced"]) / room if room > 0 else float("nan"),
        mean_loss_clean=means["clean"],
        mean_loss_spliced=means["spliced"],
        mean_loss_zero=means["zero"],
        max_logit_change=float((spliced - clean).abs().max()),
        error_term=int(error_term),
        hook=info.hook,
        hook_out=info.hook_out or "",
        sae=info.name,
        excluded=said,
    )


@analysis(reads=(), source="decoder cosine as in Balcells et al. 2024 and Laptev et al. 2025; co-activation as cosine over positions")
def cross_layer_features(
    trace: Trace,
    saes: Sequence[SAE],
    *,
    position: int = -1,
    k: int = 10,
    threshold: float = 0.3,
    exclude: Sequence[int] | None = None,
    beyond_context: bool = False,
    cache: FeatureCache | None = None,
) -> xr.Dataset:
    """The strongest features of several layers at one position, and which of them continue which.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> saes = [lp.load_sae("storyworld", name) for name in ("resid_1", "resid_2")]
    >>> trace = lp.run_trace(model, "Once upon a time", reads=lp.sae_reads(model, saes))
    >>> dict(lp.cross_layer_features(trace, saes, k=3).sizes)
    {'layer': 2, 'rank': 3, 'link': 1, 'next_rank': 3}

    Args:
        trace: as ``feature_activations``.
        saes: SAEs of one model, one per layer, whose directions lie in the residual stream.
        position: where; -1 is the last.
        k: features per layer.
        threshold: least decoder cosine of two features that are one path.
        exclude: positions left out of the co-activation. None: special tokens; (): none.
        beyond_context, cache: as ``feature_activations``.

    Returns:
        (layer, rank): feature (-1 beyond the active ones), activation; successor, the rank in the next layer of the feature that continues
        it, -1 if none; path, a number shared by the features of one path, -1 for no feature. (link, rank, next_rank): similarity, cosine of
        the decoder directions; coactivation, cosine of the activations over the positions counted. ``layer`` is the block of each SAE's hook;
        ``link`` the lower of two neighbouring SAEs. Successors are matched one to one, most similar first.

    Raises:
        SAEError: an SAE does not fit, or has directions that are not of the residual stream.
        AnalysisError: fewer than two SAEs, two of one layer, k below 1, or an excluded position is asked for.
        TraceError: the position is outside the prompt, or the trace did not read what an SAE needs.

    Cost: as ``feature_activations`` for each SAE.
    """
    if k < 1:
        raise AnalysisError(f"k must be at least 1, got {k}.")
    ordered = _by_layer(trace, list(saes))
    position = trace.position(position)
    counted, said = _counted(trace, exclude)
    if not counted[position]:
        raise AnalysisError(
            f"Position {position} ({trace.token_texts[position]!r}) is a special token, left out of rankings: choose another, or exclude=()."
        )
    features, activations, profiles, directions = [], [], [], []
    for sae in ordered:
        site = check_sae(trace.model, sae, trace=trace, beyond_context=beyond_context)
        codes, _ = _codes(trace, sae, site, cache)
        top, values = codes.top(k)
        features.append(top[position])
        activations.append(values[position])
        known = np.maximum(top[position], 0)
        directions.append(_unit(sae.W_dec[known.tolist()].detach().float().cpu().numpy()))
        profiles.append(_unit(np.stack([codes.of(int(feature)) * counted for feature in known])))
    feature = np.stack(features)  # [layer, rank]
    present = feature >= 0
    pairs = range(len(ordered) - 1)
    both = np.stack([present[i][:, None] & present[i + 1][None] for i in pairs])  # [link, rank, next_rank]
    similarity = np.where(both, np.stack([directions[i] @ directions[i + 1].T for i in pairs]), np.nan)
    coactivation = np.where(both, np.stack([profiles[i] @ profiles[i + 1].T for i in pairs]), np.nan)
    successor = np.full(feature.shape, -1)
    for i in pairs:
        successor[i] = _matched(similarity[i], threshold)
    layers = [int(sae_info(sae).layer or 0) for sae in ordered]
    return make_result(
        trace,
        cross_layer_features,
        {
            "feature": (["layer", "rank"], feature),
            "activation": (["layer", "rank"], np.stack(activations)),
            "successor": (["layer", "rank"], successor),
            "path": (["layer", "rank"], _paths(successor, present)),
            "similarity": (["link", "rank", "next_rank"], similarity.astype(np.float32)),
            "coactivation": (["link", "rank", "next_rank"], coactivation.astype(np.float32)),
        },
        {
            "layer": layers,
            "hook": ("layer", np.array([sae_info(sae).hook for sae in ordered], dtype=object)),
            "sae": ("layer", np.array([sae_info(sae).name for sae in ordered], dtype=object)),
            "link": layers[:-1],
            "next_layer": ("link", layers[1:]),
            "next_rank": np.arange(k) + 1,
        },
        position=position,
        position_token=trace.token_texts[position],
        threshold=threshold,
        excluded=said,
    )


def explained_variance(codes: Codes, target: torch.Tensor, counted: np.ndarray) -> float:
    """1 - Σ‖error‖² / Σ‖target - mean‖² over the positions counted; NaN where they have no variance. [position, d_out]"""
    rows = target[torch.from_numpy(counted).to(target.device)].double()
    if len(rows) < 2:
        return float("nan")
    variance = float((rows - rows.mean(0)).pow(2).sum())
    return 1 - float(codes.squared_error[counted].astype(np.float64).sum()) / variance if variance > 0 else float("nan")


def special_positions(trace: Trace) -> np.ndarray:
    """Where the prompt holds special tokens: BOS, end of text, padding, chat marks. [position], bool"""
    tokenizer = trace.model.tokenizer
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    return np.isin(trace.tokens.numpy(), list(special))


def _counted(trace: Trace, exclude: Sequence[int] | None) -> tuple[np.ndarray, str]:
    """Which positions count, and a sentence about those that do not."""
    if exclude is None:
        left_out, why = special_positions(trace), "special tokens"
    else:
        left_out, why = np.zeros(len(trace), dtype=bool), "as asked"
        left_out[[trace.position(position) for position in exclude]] = True
    positions = np.flatnonzero(left_out).tolist()
    return ~left_out, f"{why}: positions {', '.join(map(str, positions))}" if positions else "none"


def _codes(trace: Trace, sae: SAE, site: Site, cache: FeatureCache | None) -> tuple[Codes, torch.Tensor]:
    """The features of the whole prompt, and what their reconstruction stands for. [position, d_out], float32"""
    source = site.input(trace[site.read].detach())
    target = site.target(trace[site.write].detach())
    store = cache if cache is not None else feature_cache()
    codes = store.get(cache_key(trace, sae, source, target if site.transcoder else None), lambda: sparse_codes(sae, source, target))
    return codes, target.float()


def _labels(trace: Trace, sae: SAE, feature: np.ndarray) -> np.ndarray:
    """The one-line label of each feature shown; empty where there is none. [position, rank]"""
    known, inverse = np.unique(feature, return_inverse=True)  # -1 first, where there is none
    labels = feature_labels(trace.model, sae, known[known >= 0].tolist())
    texts = np.array(["" for _ in known[known < 0]] + [label.text for label in labels], dtype=object)
    return texts[inverse].reshape(feature.shape)


def _losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """-ln p of each token, NaN for the first. [position, d_vocab], [position] → [position]"""
    losses = torch.full((len(tokens),), torch.nan)
    if len(tokens) > 1:
        losses[1:] = torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[1:].to(logits.device), reduction="none").cpu()
    return losses


def _by_layer(trace: Trace, saes: list[Any]) -> list[Any]:
    if len(saes) < 2:
        raise AnalysisError(f"Features are followed through at least two layers, got {len(saes)} SAE{'s' * (len(saes) != 1)}.")
    infos = [sae_info(sae) for sae in saes]
    layers = [info.layer if info.layer is not None else -1 for info in infos]
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        names = ", ".join(repr(info.name) for info, layer in zip(infos, layers, strict=True) if layer == twice)
        raise AnalysisError(f"One SAE per layer: {names} are all of block {twice}.")
    d_model = int(trace.model.cfg.d_model)
    for info in infos:
        hook = info.hook_out or info.hook
        if info.d_out != d_model or hook.endswith(("hook_z", "hook_post", "hook_pre")):
            raise AnalysisError(
                f"{info.name!r} has directions in {hook!r}, which cannot be compared with those of the residual stream ({d_model} wide)."
            )
    return [saes[i] for i in np.argsort(layers, kind="stable")]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _matched(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """For each rank the rank that continues it: one to one, most similar first, none below the threshold. [rank, next_rank] → [rank]"""
    successor = np.full(len(similarity), -1)
    left = np.where(np.isnan(similarity) | (similarity < threshold), -np.inf, similarity)
    while np.isfinite(left).any():
        here, there = np.unravel_index(np.argmax(left), left.shape)
        successor[here] = there + 1
        left[here, :] = left[:, there] = -np.inf
    return successor


def _paths(successor: np.ndarray, present: np.ndarray) -> np.ndarray:
    """A number for each path, in the order of their beginnings. [layer, rank]"""
    path = np.full(successor.shape, -1)
    following = 0
    for layer, row in enumerate(successor):
        for rank in np.flatnonzero(present[layer]):
            if path[layer, rank] < 0:
                path[layer, rank], following = following, following + 1
            if row[rank] > 0:
                path[layer + 1, row[rank] - 1] = path[layer, rank]
    return path
