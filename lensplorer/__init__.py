"""lensplorer: drive a language model one token at a time and see exactly why it says what it says.

>>> import lensplorer as lp
>>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
>>> trace.token_texts[-1]
' time'

Importing this package is light: each public name is loaded from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: module → the public names in it
_PUBLIC: dict[str, tuple[str, ...]] = {
    "lensplorer.models": ("load_model", "model_info", "LensModel", "ModelInfo"),
    "lensplorer.trace": ("run_trace", "Trace"),
    "lensplorer.stepping": ("TokenTree",),
    "lensplorer.analyses.scores": ("token_scores", "next_token"),
    "lensplorer.analyses.lenses": ("logit_lens", "contrast"),
    "lensplorer.analyses.residual": ("residual_norms", "residual_decomposition", "token_similarity", "hidden_similarity"),
    "lensplorer.analyses.attention": (
        "attention_patterns",
        "attention_influence",
        "attention_by_layer",
        "attention_rollout",
        "head_statistics",
    ),
    "lensplorer.analyses.qk": ("qk_attribution",),
    "lensplorer.analyses.heads": ("head_scores", "head_clusters"),
    "lensplorer.analyses.attribution": ("attribute", "attribution_matrix"),
    "lensplorer.analyses.components": ("component_attribution",),
    "lensplorer.analyses.faithfulness": ("faithfulness_curves", "attribution_agreement"),
    "lensplorer.analyses.features": ("feature_activations", "feature_values", "splice_fidelity", "cross_layer_features"),
    "lensplorer.saes": ("load_sae", "load_sae_config", "search_saes", "sae_info", "sae_reads", "audit_sae", "model_for_sae", "feature_labels"),
    "lensplorer.session": ("Session",),
    "lensplorer.interventions": (
        "ablate",
        "ablate_attention",
        "ablate_feature",
        "ablate_head",
        "ablate_layer",
        "ablate_mlp",
        "ablate_position",
        "clamp_feature",
        "feature_direction",
        "knock_out_attention",
        "patch",
        "scale",
        "scale_feature",
        "steer",
    ),
    "lensplorer.analyses.comparison": ("compare", "difference", "next_token_change"),
    "lensplorer.analyses.metrics": ("logit_difference", "log_prob", "Reading"),
    "lensplorer.analyses.patching": ("activation_patching", "attribution_patching", "confirm_patching", "verify_by_ablation"),
    "lensplorer.sampling.distribution": ("sampling_distribution",),
    "lensplorer.sampling.params": ("DecodingParams",),
    "lensplorer.sampling.grammars": ("Constraint",),
    "lensplorer.views": ("draw",),
    "lensplorer.formats.attributions": ("Attributions", "attributions"),
    "lensplorer.formats.tokenlens": ("read_tokenlens", "write_tokenlens"),
    "lensplorer.formats.inseq": ("read_inseq", "write_inseq"),
    "lensplorer.formats.tables": ("export_table",),
    "lensplorer.formats.figures": ("export_figure", "visualize"),
    "lensplorer.batch.engine": ("run_batch",),
    "lensplorer.errors": ("LensplorerError",),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lensplorer' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
