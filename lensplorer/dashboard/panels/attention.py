"""Where the heads look: by layer, one head's whole pattern and why, all heads at one position, their statistics, rollout and clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.analyses.attention import attention_by_layer, attention_patterns, attention_rollout, head_statistics
from lensplorer.analyses.heads import head_clusters, head_scores
from lensplorer.analyses.qk import qk_attribution
from lensplorer.dashboard.asking import Here, call
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, badge, bars, columns, completeness_badge, heat, table
from lensplorer.tokens import visible

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

HERE = Here()
_MOST, _AFTER = 320, 24  #: positions sent of a long text, and how many of them may stand after the one looked at
_MOST_TERMS, _MOST_PAIRS = 8, 12  #: terms of a query and of a key, and pairs, that are shown
_SCORES = ("previous_token", "duplicate_token", "induction")
_STATISTICS = ("variance", "entropy", "sink_share")


def _build(explorer: Explorer, settings: Settings) -> Picture:
    return {
        "by layer": _by_layer,
        "one head": _one_head,
        "why": _why,
        "all heads": _all_heads,
        "statistics": _statistics,
        "scores": _scores,
        "rollout": _rollout,
        "clusters": _clusters,
    }[settings["show"]](explorer, settings)


def _attention(values: np.ndarray, rows: list[str], explorer: Explorer, **more: object) -> dict[str, object]:
    """A row per name, a column per source; of a long text the sources about the position looked at."""
    high = max(float(np.nanmax(values)), 1e-6)
    first, last = _shown(explorer, values.shape[1])
    return heat(
        values[:, first:last],
        rows=rows,
        columns=explorer.shown_tokens()[first:last],
        low=0.0,
        high=high,
        quantity="attention",
        unit="",
        column="position",
        first=first,
        mark=explorer.position - first,
        **more,  # type: ignore[arg-type]
    )


def _shown(explorer: Explorer, n: int) -> tuple[int, int]:
    """The positions of ``n`` that are sent: first, and one past the last."""
    last = min(n, explorer.position + _AFTER + 1) if n > _MOST else n
    return max(0, last - _MOST), max(last, min(n, _MOST))


def _note(explorer: Explorer, rows: np.ndarray) -> str:
    """What of a position's attention is outside the sources shown. [row, source]"""
    first, last = _shown(explorer, rows.shape[1])
    if last - first == rows.shape[1]:
        return ""
    shown = float(rows[:, first:last].sum() / max(float(rows.sum()), 1e-9))
    sink = 100 * float(rows[:, 0].mean())
    return f" Shown are positions {first} to {last - 1} of {rows.shape[1]:,}, which hold {100 * shown:.3g} % of it; position 0 holds {sink:.3g} %."


def _pattern(explorer: Explorer, weights: np.ndarray, **more: object) -> dict[str, object]:
    """A pattern of all queries; of a long text those about the position looked at."""
    first, last = _shown(explorer, len(weights))
    rows = explorer.shown_tokens()[first:last]
    return _attention(weights[first:last], rows, explorer, row="query", mark_row=explorer.position - first, **more)


def _rows_badge(weights: np.ndarray) -> dict[str, str]:
    """How far the rows are from summing to 1."""
    return badge(
        "Σ", float(np.abs(weights.sum(-1) - 1).max()), good=1e-4, near=1e-2, about="Each row of a pattern sums to 1: by how much the worst misses."
    )


def _by_layer(explorer: Explorer, settings: Settings) -> Picture:
    weights = explorer.look(attention_by_layer).weight.values
    rows = [f"block {layer}" for layer in range(len(weights))]
    figure = _attention(weights[::-1], rows[::-1], explorer, row="block")
    title = f"Attention from {explorer.shown_token(explorer.ids[explorer.position])}"
    note = "The mean over the heads of each block." + _note(explorer, weights)
    return {"figures": [figure], "title": title, "badge": _rows_badge(weights), "note": note}


def _one_head(explorer: Explorer, settings: Settings) -> Picture:
    layer, head = _head(explorer, settings)
    weights = explorer(attention_patterns, layer=layer, head=head).weight.values[0, 0]
    note = "Click a cell to see why this query reads this source." + _note(explorer, weights[explorer.position][None])
    return {
        "figures": [_pattern(explorer, weights, pick={"panel": "attention", "show": "why"})],
        "title": f"Attention pattern of head {layer}.{head}",
        "badge": _rows_badge(weights),
        "note": note,
    }


def _why(explorer: Explorer, settings: Settings) -> Picture:
    layer, head = _head(explorer, settings)
    query = explorer.position
    source = min(int(settings["source"]), query)
    result = explorer(qk_attribution, layer=layer, head=head, source=source, query=query)
    score, others = float(result.score), float(result.score_mean_of_others)
    varies = "difference" if np.isfinite(others) else "contribution"  # the first position has no other sources
    figures = []
    for side in ("query", "key"):
        terms = result[f"{side}_{varies}"].to_series()
        terms = terms.loc[terms.abs().sort_values(ascending=False).index[:_MOST_TERMS]]
        figures.append(bars([str(name) for name in terms.index], {f"terms of the {side}": terms.values}, unit="score"))
    pairs = result[["difference", "contribution"]].to_dataframe()
    pairs = pairs.loc[pairs[varies].abs().sort_values(ascending=False).index[:_MOST_PAIRS]]
    headings = [("query", "text"), ("key", "text"), ("above the others", "signed"), ("in the score", "signed")]
    figures.append(table(headings, [[*names, float(above), float(whole)] for names, above, whole in pairs.itertuples()]))
    tokens = [explorer.shown_token(explorer.ids[position]) for position in (query, source)]
    than = f", on average {others:.4g} for the other sources" if np.isfinite(others) else ""
    return {
        "figures": figures,
        "title": f"Why head {layer}.{head} reads {tokens[1]} ({source}) from {tokens[0]} ({query})",
        "badge": completeness_badge(result, "The pairs sum to the score whose softmax is the pattern: how far they miss.", good=1e-5, near=1e-4),
        "note": f"Score {score:.4g}{than}; weight {float(result.pattern):.3g}. Bars and pairs say what lifts this source above the others.",
    }


def _all_heads(explorer: Explorer, settings: Settings) -> Picture:
    explorer.note(call(attention_patterns, HERE))
    weights = explorer.answer(call(attention_patterns, explorer.here)).weight.values[:, :, -1]
    n_layers, n_heads, n = weights.shape
    flat = weights.reshape(-1, n)
    rows = [f"{layer}.{head}" for layer in range(n_layers) for head in range(n_heads)]
    figure = _attention(flat, rows, explorer, row="head")
    title = f"What every head reads at position {explorer.position}"
    return {"figures": [figure], "title": title, "badge": _rows_badge(flat), "note": _note(explorer, flat)}


def _grid(values: np.ndarray, quantity: str, unit: str) -> dict[str, object]:
    return heat(
        values,
        rows=[f"block {layer}" for layer in range(len(values))],
        columns=[f"head {head}" for head in range(values.shape[1])],
        low=0.0,
        high=max(float(np.nanmax(values)), 1e-6),
        quantity=quantity,
        unit=unit,
        row="block",
        column="head",
        pick={"panel": "attention", "show": "one head"},
    )


def _statistics(explorer: Explorer, settings: Settings) -> Picture:
    name = settings["statistic"]
    values = explorer(head_statistics)[name].values
    figure = _grid(values, "entropy" if name == "entropy" else "attention", "nats" if name == "entropy" else "")
    return {"figures": [figure], "title": f"Attention per head: {name.replace('_', ' ')}"}


def _scores(explorer: Explorer, settings: Settings) -> Picture:
    name = settings["score"]
    values = explorer(head_scores)[name].values
    return {
        "figures": [_grid(values, "attention", "")],
        "title": f"{name.replace('_', ' ').capitalize()} score of each head, on repeated random tokens",
    }


def _rollout(explorer: Explorer, settings: Settings) -> Picture:
    values = explorer(attention_rollout).weight.values
    figure = _pattern(explorer, values)
    return {"figures": [figure], "title": "Attention rollout: attention followed back through the layers", "badge": _rows_badge(values)}


def _clusters(explorer: Explorer, settings: Settings) -> Picture:
    result = explorer(head_clusters, n_clusters=int(settings["clusters"]), position=explorer.position)
    means = result.mean_pattern.values
    high = max(float(means.max()), 1e-6)
    tokens = explorer.shown_tokens()
    patterns = [
        columns(
            row[: len(tokens)],
            tokens[: len(row)],
            low=0.0,
            high=high,
            quantity="attention",
            unit="",
            top=high,
            bottom=0.0,
            label=f"cluster {i}",
            height=88,
        )
        for i, row in enumerate(means)
    ]
    title = f"Heads that read alike at position {explorer.position} ({result.attrs['projection']}, k-means)"
    return {"figures": [cluster_map(result), *patterns], "title": title}


def cluster_map(result: Any) -> dict[str, Any]:
    """Each head as a point, coloured by its cluster."""
    points = [
        {"x": float(x), "y": float(y), "category": int(cluster), "label": f"head {int(layer)}.{int(head)}, cluster {int(cluster)}"}
        for x, y, cluster, layer, head in zip(result.x.values, result.y.values, result.cluster.values, result["layer"].values, result["head"].values)
    ]
    return {"kind": "scatter", "points": points}


def layer_heat(result: Any, **more: Any) -> dict[str, Any]:
    """Attention of one position by layer, the last block on top."""
    weights = result.weight.values
    rows = [f"block {layer}" for layer in range(len(weights))]
    high = max(float(np.nanmax(weights)), 1e-6)
    tokens = [visible(str(token)) for token in result.source_token.values]
    return heat(
        weights[::-1], rows=rows[::-1], columns=tokens, low=0.0, high=high, quantity="attention", unit="", row="block", column="position", **more
    )


def _head(explorer: Explorer, settings: Settings) -> tuple[int, int]:
    model = explorer.need_session().model
    return min(int(settings["layer"]), explorer.n_layers - 1), min(int(settings["head"]), int(model.cfg.n_heads) - 1)


def _only(*shown: str):  # type: ignore[no-untyped-def]
    return lambda settings: settings["show"] in shown


def _seconds(explorer: Explorer, settings: Settings) -> float:
    if settings["show"] in ("one head", "statistics", "rollout"):  # the blocks' attention over the whole text again, the first time
        blocks = 1 / explorer.n_layers if settings["show"] == "one head" else 1.0
        return blocks * explorer.forward_seconds
    if settings["show"] == "why":  # attention and MLP of the blocks before, again, where the text was stepped through
        return 3 * min(int(settings["layer"]) + 1, explorer.n_layers) / explorer.n_layers * explorer.forward_seconds
    if settings["show"] == "scores":
        return 0.0 if explorer.has_answer(call(head_scores, HERE)) else 400 / max(1, len(explorer.ids)) * explorer.forward_seconds
    return 12.0 if settings["show"] == "clusters" and not explorer.is_imported("umap") else 0.0


ATTENTION = Panel(
    name="attention",
    title="Attention",
    about="Where the heads look: by layer, one head and why, all heads, statistics, scores, rollout, clusters.",
    build=_build,
    controls=(
        Control("show", "show", "by layer", ("by layer", "one head", "why", "all heads", "statistics", "scores", "rollout", "clusters")),
        Control("layer", "block", 0, low=0, high=999, when=_only("one head", "why")),
        Control("head", "head", 0, low=0, high=999, when=_only("one head", "why")),
        Control("source", "source", 0, low=0, high=10**7, when=_only("why"), about="The position that is read; the cursor is the one that reads"),
        Control("statistic", "of", "entropy", _STATISTICS, when=_only("statistics")),
        Control("score", "of", "induction", _SCORES, when=_only("scores")),
        Control("clusters", "clusters", 5, low=1, high=8, when=_only("clusters")),
    ),
    reads=(("attention", "attention_patterns"), ("qk", "qk_attribution")),
    seconds=_seconds,
)
