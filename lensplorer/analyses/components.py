"""What each part of the model contributes to a prediction in all, through whatever comes after it.

In the local linear model (``lensplorer.linear``) a part of the model that writes c somewhere contributes c · ∂F/∂c to F, by every path from there.
The part of it that goes straight through the residual stream to where F is read is its **direct** contribution, that of
``residual_decomposition``; what later blocks make of it is **indirect**: through their values and MLPs, their patterns, norms and gates held.

At every depth the model is cut through the residual stream, and what crosses the cut, with the constants added behind it, is F.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch

from lensplorer.analyses.base import analysis, choose, make_result
from lensplorer.analyses.metrics import Measure, Reading, aim, gap, linear_values, measure, require_complete
from lensplorer.analyses.residual import UNITS
from lensplorer.analyses.unembedding import ROUNDING
from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_layer
from lensplorer.linear import RULES
from lensplorer.running import hook_names

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

_READ_BY_MLP = re.compile(r"blocks\.\d+\.(?:mlp\.|ln2\.|hook_mlp|hook_resid_mid)")
_AFTER_BLOCK = re.compile(r"blocks\.(\d+)\.hook_(?:resid_post|out)$")
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.")


@analysis(reads=(), source="Jafari et al. 2025 (activation · gradient of the linear model); Elhage et al. 2021 (direct); Ameisen et al. 2025 (paths)")
def component_attribution(
    trace: Trace,
    target: str | int | Reading,
    *,
    versus: str | int | None = None,
    unit: str = "layer",
    position: int = -1,
    layer: int = -1,
    rule: str = "gate",
) -> xr.Dataset:
    """How much each part of the model contributes to a logit in all, and how much of it directly.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a")
    >>> parts = lp.component_attribution(trace, " time")
    >>> parts.total.dims, parts.attrs["completeness"] < 1e-5
    (('component', 'position'), True)

    Args:
        trace: any; its own linear run serves if it has the activations, else the prompt is run once more.
        target, versus, position: as ``attribute``: a token, the difference of two, or a ``Reading``.
        unit: ``"layer"``: embeddings, and attention and MLP of each block; ``"head"``; ``"neuron"``, of one block's MLP; ``"source"``: which token
            each head read it from.
        layer: the block of ``unit="neuron"``; -1 is the last.
        rule: how a gated MLP's product is shared (see ``lensplorer.linear``).

    Returns:
        total, direct and indirect = total - direct, in logits: what the part wrote at each position contributes.
        ``"layer"``: (component, position), of "embed", "pos_embed", "attn 0", "mlp 0", …; ``"head"``: (layer, head, position); ``"neuron"``:
        (neuron, position); ``"source"``: (layer, head, source), summed over the positions that read it. Components follow each other, so
        totals of different depths overlap and do not sum to anything; direct ones, with the constants, sum to F before a soft cap.

        And of each depth, (depth): stream, what the residual stream entering block ``depth`` contributes (n_layers is its end, after the last
        block), and constants, all biases and edits behind it; stream + constants = F as long as F is read further up, and NaN where it is not.

        attrs: target, versus, position, unit, rule, value = F, completeness: the largest error of that sum at any depth, relative to the
        largest of F and the terms.

    Raises:
        As ``attribute``; AnalysisError: an unknown unit or layer; or the parts do not sum to what they should, so that the hooks of this model show
            something else than what it computes with.

    Cost: one forward and one backward pass, and for the direct part of heads, neurons and sources one product with each block's output weights.
    """
    choose("unit", unit, UNITS)
    choose("rule", rule, RULES)
    n_layers = trace.n_layers
    check_layer(trace.model, layer % n_layers if -n_layers <= layer < 0 else layer)
    asked = measure(trace, aim(target, versus, position))
    parts = _Parts(trace, unit, layer % n_layers, asked, rule)
    total, direct = parts.contributions()
    stream, constants, completeness = parts.depths()
    dims = {"layer": ["component", "position"], "head": ["layer", "head", "position"], "neuron": ["neuron", "position"]}
    along = dims.get(unit, ["layer", "head", "source"])
    return make_result(
        trace,
        component_attribution,
        {
            "total": (along, total.numpy()),
            "direct": (along, direct.numpy()),
            "indirect": (along, (total - direct).numpy()),
            "stream": (["depth"], stream),
            "constants": (["depth"], constants),
        },
        {"depth": np.arange(n_layers + 1)} | ({"component": np.array(parts.components, dtype=object)} if unit == "layer" else {}),
        units=dict.fromkeys(("total", "direct", "indirect"), "1" if isinstance(target, Reading) else "logits"),
        target=asked.name,
        position=asked.position,
        unit=unit,
        rule=rule,
        value=parts.value,
        completeness=completeness,
        **({"layer": layer % n_layers} if unit == "neuron" else {}),
    )


class _Parts:
    """The parts of one unit, with their gradients in the linear model, and where F is read from the residual stream."""

    def __init__(self, trace: Trace, unit: str, layer: int, asked: Measure, rule: str) -> None:
        self.trace, self.unit, self.layer = trace, unit, layer
        names = hook_names(trace.model)
        n_layers = trace.n_layers
        self.rows = [*(f"blocks.{block}.hook_resid_pre" for block in range(n_layers)), f"blocks.{n_layers - 1}.hook_resid_post"]
        # F is read from the stream entering ``self.block``, by way of ``self.entry``
        self.block, self.entry = n_layers, self.rows[-1]
        read = asked.activation
        if read is not None:
            within, after = _IN_BLOCK.match(read), _AFTER_BLOCK.match(read)
            self.block = int(after.group(1)) + 1 if after else int(within.group(1)) if within else n_layers if "embed" not in read else 0
            middle = f"blocks.{self.block}.hook_resid_mid"
            self.entry = middle if _READ_BY_MLP.match(read) and middle in names else self.rows[self.block]
        self.outputs = {
            f"{part} {block}": name for block in range(n_layers) for part in ("attn", "mlp") if (name := f"blocks.{block}.hook_{part}_out") in names
        }
        inner: list[str] = []
        if unit == "neuron":
            inner = [f"blocks.{layer}.mlp.hook_post"]
        elif unit != "layer":
            kinds = ("hook_z",) if unit == "head" else ("hook_z", "hook_v", "hook_pattern")
            inner = [f"blocks.{block}.attn.{kind}" for block in range(n_layers) for kind in kinds]
        for name in inner:
            if name not in names:
                raise AnalysisError(f"This {trace.info.architecture} has no {name!r}: its {unit}s cannot be told apart.")
        reads = [*dict.fromkeys([*self.rows, self.entry, *self.outputs.values(), *inner])]
        (value,), self.linear = linear_values(trace, [asked], rule=rule, reads=reads)
        self.found, self.value = self.linear.gradients(value, reads), float(value.detach())
        self.components = ["embed", *(["pos_embed"] if bool(self.found.positions.any()) else []), *self.outputs]

    # -- contributions ----------------------------------------------------------------------------------------------------------------

    def contributions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Total and direct, float64 on the CPU."""
        if self.unit == "neuron":
            name = f"blocks.{self.layer}.mlp.hook_post"
            activation = self._activation(name)
            total, direct = ((activation * slope).T.cpu() for slope in self._within(name, f"mlp {self.layer}", self.layer))
            return total, direct
        made = self._layers() if self.unit == "layer" else [self._heads(block) for block in range(self.trace.n_layers)]
        total, direct = (torch.stack([pair[at] for pair in made]).cpu() for at in (0, 1))
        return total, direct

    def _layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Two of [position], of each component."""
        reader = self._gradient(self.entry)
        embeddings = self.linear.embeddings.detach()[0].double()
        made = {"embed": (self.found.tokens.to(reader.device), (embeddings * reader).sum(-1))}
        if "pos_embed" in self.components:
            made["pos_embed"] = self.found.positions.to(reader.device), ((self._activation(self.rows[0]) - embeddings) * reader).sum(-1)
        for name, hook in self.outputs.items():
            written = self._activation(hook)
            total = (written * self._gradient(hook)).sum(-1)
            made[name] = total, (written * reader).sum(-1) if int(name.split()[1]) < self.block else total
        self._check_sum({name: direct for name, (_, direct) in made.items()}, reader)
        return list(made.values())

    def _check_sum(self, directs: dict[str, torch.Tensor], reader: torch.Tensor) -> None:
        """Refuse outputs that are not what is added to the stream."""
        if self.trace.interventions or self.entry not in self.rows:
            return
        written = [float(value.sum()) for name, value in directs.items() if " " not in name or int(name.split()[1]) < self.block]
        missed = gap(written, float((self._activation(self.entry) * reader).sum()))
        if missed > ROUNDING[self.trace.dtype]:
            raise AnalysisError(
                f"What the parts of this {self.trace.info.architecture} write misses the residual stream by {missed:.1e} of the largest: its hooks"
                " show something else than what is added. Refused."
            )

    def _heads(self, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[head, position], or [head, source] where sources are told apart."""
        prefix = f"blocks.{block}.attn."
        slopes = self._within(f"{prefix}hook_z", f"attn {block}", block)  # two of [position, head, d_head]
        z = self._activation(f"{prefix}hook_z")
        if self.unit == "head":
            total, direct = ((z * slope).sum(-1).T for slope in slopes)
            return total, direct
        pattern, v = self._activation(f"{prefix}hook_pattern"), self._activation(f"{prefix}hook_v")
        v = v.repeat_interleave(z.shape[1] // v.shape[1], dim=1)  # grouped queries share values
        missed = (torch.einsum("hqs,shd->qhd", pattern, v) - z).norm(dim=(0, 2)) / z.norm(dim=(0, 2)).clamp_min(1e-6)  # [head]
        read = (missed <= ROUNDING[self.trace.dtype]).to(z.dtype)
        if not self.trace.interventions and not bool(read.all()):
            raise AnalysisError(
                f"In block {block}, pattern · v differs from a head's output by {float(missed.max()):.1e} of its norm: which token each head read"
                " cannot be told for this model. Use unit='head'."
            )
        total, direct = (torch.einsum("hqs,qhd,shd->hs", pattern, slope, v) * read[:, None] for slope in slopes)
        return total, direct

    def _within(self, name: str, component: str, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients at an activation inside a block: in all, and by way of the block's output straight to where F is read. As the activation"""
        total = self._gradient(name)
        if block >= self.block:
            return total, total
        if component not in self.outputs:
            raise AnalysisError(f"Block {block} of this {self.trace.info.architecture} does not show what it adds: use unit='layer'.")
        output, inner = self.linear.graph[self.outputs[component]], self.linear.graph[name]
        if not (output.tensor.requires_grad and inner.tensor.requires_grad):  # an intervention wrote over it
            return total, torch.zeros_like(total)
        reader = self._gradient(self.entry).to(output.tensor).view(output.tensor.shape)
        slope = torch.autograd.grad(output.tensor, inner.tensor, reader, retain_graph=True, allow_unused=True)[0]
        return total, torch.zeros_like(total) if slope is None else inner.show(slope)[0].double()

    # -- depths -----------------------------------------------------------------------------------------------------------------------

    def depths(self) -> tuple[np.ndarray, np.ndarray, float]:
        """What crosses each cut, the constants behind it, and the worst error of their sum."""
        stream, constants = np.full(len(self.rows), np.nan), np.full(len(self.rows), np.nan)
        whole = [*self.found.tokens.tolist(), *self.found.rest.values()]
        require_complete(self.trace, whole, self.value)
        worst = gap(whole, self.value)
        for depth, name in enumerate(self.rows[: self.block + 1]):
            terms = (self._activation(name) * self._gradient(name)).sum(-1).tolist()
            stream[depth], constants[depth] = sum(terms), self.found.after(depth)
            require_complete(self.trace, [*terms, constants[depth]], self.value)
            worst = max(worst, gap([*terms, constants[depth]], self.value))
        return stream, constants, worst

    # -- what the run has -------------------------------------------------------------------------------------------------------------

    def _activation(self, name: str) -> torch.Tensor:
        return self.linear.graph[name].value[0].detach().double()

    def _gradient(self, name: str) -> torch.Tensor:
        gradient = self.found.at[name]
        return torch.zeros_like(self._activation(name)) if gradient is None else gradient.double()
