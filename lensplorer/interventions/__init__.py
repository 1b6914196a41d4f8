"""Interventions: change something, see everything change.

An intervention is a value, frozen and hashable, equal to another when it means the same, that becomes hooks of the one run
(``run_trace(model, prompt, interventions=[...])``, ``Session``, ``TokenTree``); several are applied in order. Every analysis then works on the
changed trace as on any other. Positions are absolute, so an edit means the same in a run over the whole prompt and in a step with a KV cache.

What a model does not let be edited is refused, by measuring it: see ``lensplorer.interventions.checks``.
"""

from lensplorer.interventions.edits import (
    Ablation,
    KnockOut,
    Patch,
    Scale,
    ablate,
    ablate_attention,
    ablate_head,
    ablate_layer,
    ablate_mlp,
    ablate_position,
    knock_out_attention,
    patch,
    scale,
)
from lensplorer.interventions.features import (
    Dictionary,
    FeatureEdit,
    ablate_feature,
    clamp_feature,
    feature_direction,
    scale_feature,
)
from lensplorer.interventions.saving import from_dict, to_dict
from lensplorer.interventions.steering import Contrast, Direction, Steer, steer
from lensplorer.interventions.values import Positions, Reference

__all__ = [
    "Ablation",
    "Contrast",
    "Dictionary",
    "Direction",
    "FeatureEdit",
    "KnockOut",
    "Patch",
    "Positions",
    "Reference",
    "Scale",
    "Steer",
    "ablate",
    "ablate_attention",
    "ablate_feature",
    "ablate_head",
    "ablate_layer",
    "ablate_mlp",
    "ablate_position",
    "clamp_feature",
    "feature_direction",
    "from_dict",
    "knock_out_attention",
    "patch",
    "scale",
    "scale_feature",
    "steer",
    "to_dict",
]
