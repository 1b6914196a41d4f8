"""SAEs and transcoders: found by release name, loaded, checked against the model, encoded by sae-lens' own code, cached and labelled."""

from lensplorer.saes.audit import Check, audit_sae, check_sae, model_for_sae
from lensplorer.saes.cache import FeatureCache, feature_cache
from lensplorer.saes.codes import encode, encode_and_decode, splice_hooks
from lensplorer.saes.info import SAEInfo, sae_info
from lensplorer.saes.labels import FeatureLabel, feature_labels, neuronpedia_url
from lensplorer.saes.loading import load_sae, load_sae_config
from lensplorer.saes.registry import releases, sae_ids, search_saes
from lensplorer.saes.site import Site, find_site, sae_reads

__all__ = [
    "Check",
    "FeatureCache",
    "FeatureLabel",
    "SAEInfo",
    "Site",
    "audit_sae",
    "check_sae",
    "encode",
    "encode_and_decode",
    "feature_cache",
    "feature_labels",
    "find_site",
    "load_sae",
    "load_sae_config",
    "model_for_sae",
    "neuronpedia_url",
    "releases",
    "sae_ids",
    "sae_info",
    "sae_reads",
    "search_saes",
    "splice_hooks",
]
