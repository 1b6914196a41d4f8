"""SAE features: the strongest at the position looked at, with labels and switches, and their path through the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lensplorer.analyses.features import cross_layer_features, feature_activations, feature_values
from lensplorer.dashboard.asking import Dictionary
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, columns, table

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

_CHOOSE = [{"label": "Choose SAEs", "do": "choose_sae"}]


def _build(explorer: Explorer, settings: Settings) -> Picture:
    if not explorer.saes.loaded:
        note = f"Loading {explorer.saes.loading[0]} …" if explorer.saes.loading else explorer.saes.error or "No SAE is loaded."
        return {"figures": [], "note": note, "buttons": _CHOOSE}
    if settings["show"] == "path through layers":
        return _path(explorer, settings)
    return _table(explorer, settings)


def _table(explorer: Explorer, settings: Settings) -> Picture:
    name = explorer.saes.chosen
    result = explorer(feature_activations, Dictionary(name), k=int(settings["count"]))
    at = result.isel(position=explorer.position)
    found = [int(feature) for feature in at.feature.values if feature >= 0]
    labels = {label.feature: label for label in explorer.saes.labels(name, found)}
    rows: list[list[Any]] = []
    for feature, activation in zip(found, at.activation.values):
        label = labels[feature]
        rows.append(
            [
                feature,
                float(activation),
                label.text,
                {"text": "Neuronpedia", "href": label.url} if label.url else None,
                [
                    {"label": "show", "do": "choose_feature", "feature": feature, "about": "Colour the text by this feature"},
                    {"label": "× 0", "do": "scale_feature", "feature": feature, "factor": 0.0, "about": "Run the model without this feature"},
                    {
                        "label": "× 3",
                        "do": "scale_feature",
                        "feature": feature,
                        "factor": 3.0,
                        "about": "Run the model with three times this feature",
                    },
                ],
            ]
        )
    explained = float(result.attrs["explained_variance"])
    figures: list[dict[str, Any]] = [
        table([("feature", "number"), ("activation", "number"), ("label", "text"), ("", "link"), ("", "do")], rows, mark=explorer.state.feature)
    ]
    if explorer.state.feature is not None:
        values = explorer(feature_values, Dictionary(name), explorer.state.feature).activation.values[:, 0]
        high = max(float(values[values == values].max(initial=0.0)), 1e-6)
        figures.append(
            columns(
                values,
                explorer.shown_tokens(),
                low=0.0,
                high=high,
                quantity="feature",
                unit="",
                label=f"feature {explorer.state.feature}",
                height=110,
            )
        )
    special = explorer.ids[explorer.position] in explorer.special_ids()
    empty = "Special tokens are left out of the ranking." if special else "No feature is active here."
    return {
        "figures": figures if rows or len(figures) > 1 else [],
        "title": f"Features of {name} at {explorer.shown_token(explorer.ids[explorer.position])}",
        "badge": {
            "text": f"EV {100 * explained:.1f} %" if explained == explained else "EV –",
            "level": "good" if explained >= 0.8 else "near" if explained >= 0.5 else "bad",
            "about": "Explained variance: the share of the activation's variance over this prompt that the features reconstruct.",
        },
        "note": f"{float(result.attrs['l0']):.0f} of {int(result.attrs['d_sae']):,} features are active at a token, on average. "
        f"{result.attrs['hook']}."
        if rows
        else empty,
    }


def _path(explorer: Explorer, settings: Settings) -> Picture:
    names = explorer.saes.residual()
    if len(names) < 2:
        return {"figures": [], "note": "A path needs SAEs of at least two layers of the residual stream.", "buttons": _CHOOSE}
    result = explorer(cross_layer_features, tuple(Dictionary(name) for name in names), position=explorer.position, k=int(settings["count"]))
    shown = []
    layers = [int(layer) for layer in result["layer"].values]
    for i, layer in enumerate(layers):
        for rank, feature in enumerate(result.feature.values[i].tolist()):
            if feature < 0:
                continue
            successor = int(result.successor.values[i, rank]) - 1  # ranks count from 1
            similarity = float(result.similarity.values[i, rank, successor]) if successor >= 0 and i < len(layers) - 1 else float("nan")
            onward = int(result.feature.values[i + 1, successor]) if similarity == similarity else None
            label = explorer.saes.labels(names[i], [feature])[0].text
            shown.append([int(result["path"].values[i, rank]), layer, feature, float(result.activation.values[i, rank]), label, onward, similarity])
    shown.sort(key=lambda row: (-sum(other[0] == row[0] for other in shown), row[0], row[1]))
    headings = [
        ("path", "number"),
        ("block", "number"),
        ("feature", "number"),
        ("activation", "number"),
        ("label", "text"),
        ("goes on as", "number"),
        ("cosine", "number"),
    ]
    return {
        "figures": [table(headings, shown)],
        "title": f"Features through the layers after {explorer.shown_token(explorer.ids[explorer.position])}",
    }


FEATURES = Panel(
    name="features",
    span=12,
    title="SAE features",
    about="The dictionary features most active at this position, with labels, and their path through the layers.",
    build=_build,
    controls=(
        Control("show", "show", "strongest", ("strongest", "path through layers")),
        Control("count", "features", 8, low=1, high=50),
    ),
)
