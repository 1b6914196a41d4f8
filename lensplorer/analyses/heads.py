"""What kind of head each head is: scores on repeated random tokens, and clusters of heads that read alike.

Scores (Olsson et al. 2022, "In-context Learning and Induction Heads") are mean weights on one diagonal of the pattern, on random tokens
r₁ … r_T repeated once, after a BOS token if the model uses one:

- previous-token: on the token before the query, over the whole sequence;
- duplicate-token: on the earlier copy of the query's own token, T before it, over the second copy;
- induction: on the token after that earlier copy, T - 1 before the query, over the second copy.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.attention import PATTERN_READS, head_labels, rows_at, window_of
from lensplorer.analyses.base import analysis, make_result
from lensplorer.errors import AnalysisError
from lensplorer.models import LensModel, model_info
from lensplorer.running import run_model
from lensplorer.trace import Trace, make_trace

if TYPE_CHECKING:
    from collections.abc import Iterable

    import xarray as xr

    from lensplorer.running import Intervention

_LONGEST = 50
_FEWEST_FOR_UMAP = 5  # below this its neighbour graph is complete and says nothing


@analysis(reads=(), source="Olsson et al. 2022, In-context Learning and Induction Heads")
def head_scores(
    model: LensModel | Trace, *, length: int | None = None, batch: int = 8, seed: int = 0, interventions: Iterable[Intervention] = ()
) -> xr.Dataset:
    """Previous-token, duplicate-token and induction score of every head, on repeated random tokens.

    >>> import lensplorer as lp
    >>> scores = lp.head_scores(lp.load_model("storyworld"), batch=2)
    >>> scores.induction.dims, bool(scores.induction.max() <= 1)
    (('layer', 'head'), True)

    Args:
        model: a model, or a trace, whose model and interventions are taken.
        length: T, tokens before they repeat. None: 50, or what fits the context and the narrowest sliding window.
        batch: how many random sequences to average over.
        seed: of the random tokens.
        interventions: changes applied during the run.

    Returns:
        (layer, head): previous_token, duplicate_token, induction, each a mean attention weight, 0..1. NaN where a layer's sliding window
        is too short to see that far back. attrs: length, batch, seed.

    Raises:
        AnalysisError: length or batch is below its least value, or the sequence does not fit the context.

    Cost: one forward pass over batch × (2 length + 1) tokens, and its patterns.
    """
    if isinstance(model, Trace):
        interventions = (*model.interventions, *interventions)
        model = model.model
    interventions = tuple(interventions)
    length = _fitting_length(model, length)
    if batch < 1:
        raise AnalysisError(f"batch must be at least 1, got {batch}.")
    tokens, first = _repeated_tokens(model, length, batch, seed)  # first: where the first copy starts
    n_layers = int(model.cfg.n_layers)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(n_layers)]
    run = run_model(model, tokens, reads=names, interventions=interventions)
    rows = []
    for layer, name in enumerate(names):
        pattern = run.activations[name].detach().float()  # [batch, head, query, source]
        window = window_of(model, layer)
        diagonals = [(1, first + 1), (length, first + length), (length - 1, first + length)]
        rows.append(torch.stack([_diagonal_mean(pattern, offset, start, window) for offset, start in diagonals]).cpu())
    previous, duplicate, induction = torch.stack(rows, 1)  # each [layer, head]
    trace = make_trace(model, tokens[0].cpu(), run.logits[0], {}, interventions)
    dims = ["layer", "head"]
    return make_result(
        trace,
        head_scores,
        {"previous_token": (dims, previous), "duplicate_token": (dims, duplicate), "induction": (dims, induction)},
        length=length,
        batch=batch,
        seed=seed,
    )


def _fitting_length(model: LensModel, length: int | None) -> int:
    n_ctx = model_info(model).n_ctx
    longest = (n_ctx - 1) // 2
    if length is None:
        windows = [window for layer in range(int(model.cfg.n_layers)) if (window := window_of(model, layer)) is not None]
        # The earlier copy is ``length`` tokens back, and a window reaches its size - 1 back.
        length = min([_LONGEST, longest, *(window - 1 for window in windows)])
    if not 2 <= length <= longest:
        raise AnalysisError(f"length must be 2 to {longest} (two copies and a BOS within the context of {n_ctx}), got {length}.")
    return length


def _repeated_tokens(model: LensModel, length: int, batch: int, seed: int) -> tuple[torch.Tensor, int]:
    """Random ordinary tokens, repeated once, after BOS if the model uses one. [batch, position] and the first copy's start"""
    tokenizer = model.tokenizer
    special = set(getattr(tokenizer, "all_special_ids", None) or [])
    size = min(int(model.cfg.d_vocab), len(tokenizer)) if tokenizer is not None else int(model.cfg.d_vocab)
    ordinary = torch.tensor([token_id for token_id in range(size) if token_id not in special])
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(ordinary), (batch, length), generator=generator)
    copies = ordinary[picks].repeat(1, 2)
    if not model_info(model).default_prepend_bos:
        return copies, 0
    return torch.cat([torch.full((batch, 1), tokenizer.bos_token_id), copies], 1), 1


def _diagonal_mean(pattern: torch.Tensor, offset: int, start: int, window: int | None) -> torch.Tensor:
    """Mean weight ``offset`` before the query, over queries from ``start`` on and the batch; NaN outside the window. [head]"""
    if window is not None and offset >= window:
        return torch.full(pattern.shape[1:2], torch.nan, device=pattern.device)
    diagonal = pattern.diagonal(-offset, dim1=2, dim2=3)  # [batch, head, query - offset]
    return diagonal[..., start - offset :].mean((0, 2))


@analysis(reads=PATTERN_READS, source="UMAP (McInnes et al. 2018) for the map; k-means (Lloyd 1982) on the pattern rows")
def head_clusters(trace: Trace, *, n_clusters: int = 5, seed: int = 0, position: int = -1) -> xr.Dataset:
    """Heads that read alike at one position.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> trace = lp.run_trace(model, "Once upon a time", reads=[lp.head_clusters])
    >>> dict(lp.head_clusters(trace, n_clusters=2).sizes)
    {'head_index': 16, 'cluster': 2, 'source': 5}

    Needs ``pip install "lensplorer[clusters]"``.

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern``.
        n_clusters: of k-means, on the heads' pattern rows themselves (not on the map).
        seed: of the map and of k-means.
        position: the query whose rows are compared; -1 is the last.

    Returns:
        (head_index): layer, head; x, y, a map by UMAP (by principal components when the model has fewer than 5 heads or the rows have
        too few distinct values; attrs["projection"] says which); cluster, 0 the largest. (cluster, source): mean_pattern. (cluster): size.

    Raises:
        AnalysisError: the extra is not installed, or n_clusters is below 1 or above the number of distinct rows.
        TraceError: the position is outside the prompt, or the trace did not read the patterns.

    Cost: seconds, most of them UMAP's import and compilation at first use; no forward pass.
    """
    position = trace.position(position)
    rows = rows_at(trace, position)  # [layer, head, source]
    layer, head = head_labels(*rows.shape[:2])
    flat = rows.flatten(0, 1).numpy()  # [head_index, source]
    distinct = len(np.unique(flat.round(6), axis=0))
    if not 1 <= n_clusters <= distinct:
        raise AnalysisError(
            f"n_clusters must be 1 to {distinct}, got {n_clusters}: at position {position} the {len(flat)} heads have {distinct} distinct rows."
        )
    cluster = _k_means(flat, n_clusters, seed)
    projection, (x, y) = _map(flat, seed) if distinct >= _FEWEST_FOR_UMAP else ("principal components", _principal(flat))
    means = np.stack([flat[cluster == index].mean(0) for index in range(n_clusters)])
    per_head = ["head_index"]
    return make_result(
        trace,
        head_clusters,
        {
            "layer": (per_head, layer),
            "head": (per_head, head),
            "x": (per_head, x),
            "y": (per_head, y),
            "cluster": (per_head, cluster),
            "mean_pattern": (["cluster", "source"], means),
            "size": (["cluster"], np.bincount(cluster, minlength=n_clusters)),
        },
        position=position,
        seed=seed,
        n_clusters=n_clusters,
        projection=projection,
    )


def _needs_clusters(error: ImportError) -> AnalysisError:
    return AnalysisError(f'head_clusters needs UMAP and scikit-learn: pip install "lensplorer[clusters]" ({error}).')


def _k_means(rows: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster of each row, numbered from the largest. [head_index]"""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise _needs_clusters(error) from error
    found = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(rows)
    order = np.argsort(-np.bincount(found, minlength=n_clusters), kind="stable")
    number = np.empty(n_clusters, dtype=np.int64)
    number[order] = np.arange(n_clusters)
    return number[found]


def _map(rows: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    """UMAP to two dimensions. [2, head_index]"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # UMAP misses TensorFlow, which only its parametric kind needs
            from umap import UMAP
    except ImportError as error:
        raise _needs_clusters(error) from error
    # UMAP's spectral start needs more points than it has eigenvectors to find; random start serves a handful.
    start = "spectral" if len(rows) > 16 else "random"
    made: Any = UMAP(n_components=2, n_neighbors=min(15, len(rows) - 1), init=start, random_state=seed, n_jobs=1).fit_transform(rows)
    return "UMAP", np.asarray(made, dtype=np.float32).T


def _principal(rows: np.ndarray) -> np.ndarray:
    """The first two principal components; zeros where there are fewer. [2, head_index]"""
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    scores = (u * s).T[:2]
    return np.pad(scores, ((0, 2 - len(scores)), (0, 0)))
