"""Change the model and watch: a form for interventions, the list of those in force, and the plain model's candidates beside the changed ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lensplorer.analyses.comparison import next_token_change
from lensplorer.dashboard.asking import Here, Plain, call
from lensplorer.dashboard.panels.base import Control, Panel, Picture, Settings, table
from lensplorer.errors import LensplorerError

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

KINDS = (
    "ablate head",
    "ablate attention",
    "ablate MLP",
    "ablate layer",
    "ablate position",
    "scale head",
    "knock out attention",
    "steer",
    "scale feature",
)
_HEADED = ("ablate head", "scale head", "knock out attention")
_SHOWN = 12


def make(explorer: Explorer, settings: Settings) -> tuple[Any, str, str]:
    """The intervention that the form describes, the Python that makes it, and the name of the SAE that stands as ``SAE`` in it.

    Raises:
        LensplorerError: a field does not fit the model, or is missing.
    """
    import lensplorer as lp

    kind, layer, head = settings["kind"], int(settings["layer"]), int(settings["head"])
    where = positions(settings["positions"])
    options = {} if where is None else {"positions": where}
    shown = "" if where is None else f", positions={where}"
    hook = f"blocks.{layer}.attn.hook_z"
    makers: dict[str, Callable[[], tuple[Any, str]]] = {
        "ablate head": lambda: (lp.ablate_head(layer, head, **options), f"lp.ablate_head({layer}, {head}{shown})"),
        "ablate attention": lambda: (lp.ablate_attention(layer, **options), f"lp.ablate_attention({layer}{shown})"),
        "ablate MLP": lambda: (lp.ablate_mlp(layer, **options), f"lp.ablate_mlp({layer}{shown})"),
        "ablate layer": lambda: (lp.ablate_layer(layer, **options), f"lp.ablate_layer({layer}{shown})"),
        "scale head": lambda: (
            lp.scale(hook, settings["factor"], heads=head, **options),
            f"lp.scale({hook!r}, {settings['factor']!r}, heads={head}{shown})",
        ),
    }
    if kind in makers:
        return *makers[kind](), ""
    if kind == "ablate position":
        if where is None:
            raise LensplorerError("Which position? Write it under positions, as 3 or 3-5.")
        return lp.ablate_position(where, layer=layer), f"lp.ablate_position({where}, layer={layer})", ""
    if kind == "knock out attention":
        source = positions(settings["source"])
        if source is None:
            raise LensplorerError("Which source? Write the position that must not be read, as 3 or 3-5.")
        return lp.knock_out_attention(layer, head, source, where), f"lp.knock_out_attention({layer}, {head}, {source}, {where})", ""
    if kind == "steer":
        pair = (settings["towards"], settings["away"])
        if not all(pair):
            raise LensplorerError("Steering needs two texts: towards and away from.")
        return lp.steer(pair, layer, settings["factor"], **options), f"lp.steer({pair!r}, {layer}, {settings['factor']!r}{shown})", ""
    return scaled(explorer, int(settings["feature"]), settings["factor"], where)


def scaled(explorer: Explorer, feature: int, factor: float, where: list[int] | None = None) -> tuple[Any, str, str]:
    """A feature of the chosen SAE, scaled; as ``make``."""
    import lensplorer as lp

    name = explorer.saes.chosen
    explorer.saes.check(name)
    shown = "" if where is None else f", positions={where}"
    return (
        lp.scale_feature(explorer.saes.loaded[name], feature, factor, positions=where),
        f"lp.scale_feature(SAE, {feature}, {factor!r}{shown})",
        name,
    )


def positions(text: str) -> list[int] | None:
    """``"3"``, ``"3-5"``, ``"1, 4-6"`` as a list; empty is None, all positions.

    Raises:
        LensplorerError: it is none of these.
    """
    if not text.strip():
        return None
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:[-–]\s*(\d{1,6})\s*)?", piece)
        if match is None:
            raise LensplorerError(f"Positions: expected numbers such as 3, 3-5 or 1, 4-6, got {text!r}.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 10_000:
            raise LensplorerError(f"Positions: {piece.strip()!r} is no range.")
        found += range(first, last + 1)
    return sorted(set(found))


def _build(explorer: Explorer, settings: Settings) -> Picture:
    session = explorer.need_session()
    buttons = [{"label": "Apply", "do": "intervene", "main": True}]
    figures: list[dict[str, Any]] = []
    note = "The model runs as it is. Describe a change and apply it: every view then shows the changed run, with the plain one beside it here."
    if session.interventions:
        buttons.append({"label": "Take all off", "do": "clear_interventions"})
        in_force = [[str(one), [{"label": "take off", "do": "remove_intervention", "index": i}]] for i, one in enumerate(session.interventions)]
        figures.append(table([("in force", "text"), ("", "do")], in_force))
        result = explorer.ask(call(next_token_change, Plain(), Here(), k=_SHOWN, position=explorer.position))
        rows = [
            [
                explorer.shown_token(int(result.token_id.values[i])),
                float(result.probability_a.values[i]),
                float(result.probability_b.values[i]),
                float(result.change.values[i]),
            ]
            for i in range(result.sizes["candidate"])
        ]
        figures.append(table([("token", "token"), ("plain", "probability"), ("changed", "probability"), ("Δ", "signed")], rows))
        note = f"KL(plain ‖ changed) = {float(result.attrs['kl']):.3g} nats at this position."
    return {"figures": figures, "buttons": buttons, "note": note}


def _only(*kinds: str) -> Callable[[Settings], bool]:
    return lambda settings: settings["kind"] in kinds


INTERVENTIONS = Panel(
    name="interventions",
    title="Interventions",
    about="Ablate, scale, knock out, steer: the changed model beside the plain one.",
    build=_build,
    controls=(
        Control("kind", "change", "ablate head", KINDS),
        Control("layer", "block", 0, low=0, high=999, when=lambda s: s["kind"] != "scale feature"),
        Control("head", "head", 0, low=0, high=999, when=_only(*_HEADED)),
        Control("source", "source", "", when=_only("knock out attention"), about="Position that must not be read: 3 or 3-5"),
        Control("towards", "towards", "", when=_only("steer"), about="Text whose residual stream is added"),
        Control("away", "away from", "", when=_only("steer"), about="Text whose residual stream is taken off"),
        Control("feature", "feature", 0, low=0, high=10_000_000, when=_only("scale feature")),
        Control("factor", "factor", 2.0, low=-1e4, high=1e4, when=_only("scale head", "steer", "scale feature")),
        Control("positions", "positions", "", about="Where: 3, 3-5 or 1, 4-6; empty: everywhere"),
    ),
    is_open=False,
)
