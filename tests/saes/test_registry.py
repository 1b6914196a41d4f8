"""The registry is searched by words; what the names tell of hook and width is right; the shipped configurations name what exists."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lensplorer.config import load_config
from lensplorer.errors import SAEError
from lensplorer.models import model_info
from lensplorer.saes import releases, sae_ids, search_saes
from lensplorer.saes.registry import directory

CONFIGS = sorted((Path(__file__).parents[2] / "sae_configs").glob("*.toml"))


def test_everything_registered_is_listed():
    lookup = directory()
    table = search_saes()
    registered = table[table.repo_id != "built in"]
    assert len(registered) == sum(len(release.saes_map) for release in lookup.values()) >= 13_000
    assert set(registered.release) == set(lookup) and len(lookup) >= 170 and set(lookup) < set(releases())


def test_every_word_must_match_in_any_order_and_case():
    found = search_saes("JB gpt2-small resid_pre blocks.8.")
    assert set(found.release) == {"gpt2-small-res-jb", "gpt2-small-res-jb-feature-splitting"}
    one = search_saes("gpt2-small-res-jb blocks.8.hook_resid_pre").iloc[0]
    assert (one.model, one.hook, one.layer, one.neuronpedia_id) == ("gpt2-small", "blocks.8.hook_resid_pre", 8, "gpt2-small/8-res-jb")
    assert search_saes("no such thing at all").empty


@pytest.mark.parametrize(
    "release, sae_id, hook, width",
    [
        ("gemma-scope-2b-pt-res-canonical", "layer_12/width_16k/canonical", "blocks.12.hook_resid_post", 16384),
        ("gemma-scope-2b-pt-att", "layer_0/width_16k/average_l0_104", "blocks.0.attn.hook_z", 16384),
        ("gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_54", "blocks.3.ln2.hook_normalized", 16384),
        ("gemma-scope-2-4b-pt-transcoders-all", "layer_10_width_262k_l0_big", "blocks.10.hook_mlp_in", 262144),
        ("mwhanna-qwen3-0.6b-transcoders-lowl0", "layer_7", "blocks.7.mlp.hook_in", None),
        ("gpt2-small-hook-z-kk", "blocks.3.hook_z", "blocks.3.attn.hook_z", 24576),
        ("gpt2-small-mlp-out-v5-32k", "blocks.2.hook_mlp_out", "blocks.2.hook_mlp_out", 32768),
        ("gpt2-small-res-jb-feature-splitting", "blocks.8.hook_resid_pre_6144", "blocks.8.hook_resid_pre", 6144),
        ("llama_scope_lxm_8x", "l3m_8x", "blocks.3.hook_mlp_out", 32768),
        ("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "blocks.12.hook_resid_post__trainer_0", "blocks.12.hook_resid_post", 4096),
        ("qwen-scope-3-8b-base-w64k-l50", "layer9", "blocks.9.hook_resid_post", 65536),
        ("llama-3.1-8b-instruct-andyrdt", "resid_post_layer_3_trainer_1", "blocks.3.hook_resid_post", None),
    ],
)
def test_hook_and_width_are_read_out_of_the_names(release, sae_id, hook, width):
    table = search_saes()
    row = table[(table.release == release) & (table.sae_id == sae_id)].iloc[0]
    assert row.hook == hook
    assert (None if pd.isna(row.width) else int(row.width)) == width


def test_what_fits_a_model_is_told(tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    monkeypatch.setattr(model, "lensplorer_info", model_info(model).__class__(**{**vars(model_info(model)), "name": "gpt2"}))
    found = search_saes("res-jb", model=model)
    answers = {(row.release, row.sae_id): row.fits for row in found.itertuples()}
    assert answers["gpt2-small-res-jb", "blocks.1.hook_resid_pre"] == "yes"
    assert answers["gpt2-small-res-jb", "blocks.11.hook_resid_pre"] == "no", "the tiny model has three blocks"
    assert answers["gemma-2b-res-jb", "blocks.0.hook_resid_post"] == "no"


def test_unknown_names_offer_the_nearest():
    with pytest.raises(SAEError, match=r"no SAE release 'gpt2-smal-res-jb'. Did you mean 'gpt2-small-res-jb'"):
        sae_ids("gpt2-smal-res-jb")
    assert "blocks.8.hook_resid_pre" in sae_ids("gpt2-small-res-jb")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_name_what_is_registered(path):
    config = load_config(path)
    assert config.model.name and config.model.enable_sae and config.sae
    table = search_saes()
    for sae in config.sae:
        if sae.release is None:
            assert sae.repo_id == "mntss/skip-transcoder-Llama-3.2-1B-131k-nobos" and sae.filename == f"layer_{sae.layer}.safetensors"
            assert sae.revision == "new-training"
            continue
        if sae.release == "storyworld":
            continue  # built in: tested with its weights
        row = table[(table.release == sae.release) & (table.sae_id == sae.sae_id)]
        assert len(row) == 1, f"{sae.release} has no {sae.sae_id}"
        assert row.iloc[0].layer == sae.layer


def test_every_model_of_the_issue_has_a_configuration():
    assert {path.stem for path in CONFIGS} >= {
        "storyworld",
        "gpt2-small",
        "gpt2-small-attn-out",
        "gpt2-small-mlp-out",
        "pythia-70m-deduped",
        "gemma-2-2b",
        "llama-3.2-1b",
        "qwen3-0.6b",
    }
