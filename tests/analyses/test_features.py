"""Features are sae-lens' own encoding of the right activation; reconstruction and error make it up; splicing with the error changes nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from lensplorer.analyses.features import cross_layer_features, feature_activations, special_positions, splice_fidelity
from lensplorer.errors import AnalysisError, ArgumentError, SAEError, TraceError
from lensplorer.saes import FeatureCache, check_sae, encode, encode_and_decode, sae_reads
from lensplorer.saes.info import sae_lens
from lensplorer.trace import run_trace
from tests.saes import tiny_saes

PROMPT = "the cat sat on the mat and the dog ran to the shop"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has a cache of its own, and none writes to the user's."""
    monkeypatch.setattr("lensplorer.saes.cache._default", FeatureCache(tmp_path / "features"))


@pytest.fixture(scope="module")
def gpt2(tiny_model):
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def trace(gpt2):
    return run_trace(gpt2, PROMPT, prepend_bos=True)


def dense(features, trace, d_sae):
    """[position, d_sae] from a result with every active feature."""
    values = np.zeros((len(trace), d_sae), dtype=np.float32)
    for position in range(len(trace)):
        for feature, activation in zip(features.feature.values[position], features.activation.values[position]):
            if feature >= 0:
                values[position, feature] = activation
    return values


@pytest.mark.parametrize("architecture", tiny_saes.ARCHITECTURES)
def test_encoding_is_sae_lens_own_exactly(architecture, gpt2, trace):
    sae = tiny_saes.of(gpt2, architecture)
    hook = tiny_saes.MLP_IN if "transcoder" in architecture else tiny_saes.RESIDUAL
    expected = sae.encode(trace[hook])
    result = feature_activations(trace, sae, k=tiny_saes.D_SAE, exclude=())
    assert (expected != 0).any() and not (expected != 0).all()
    assert np.array_equal(dense(result, trace, tiny_saes.D_SAE), expected.numpy())
    assert result.attrs["l0"] == pytest.approx(float((expected != 0).sum(-1).float().mean()))
    ranked = np.nan_to_num(result.activation.values)
    assert (np.diff(np.abs(ranked), axis=1) <= 0).all(), "strongest first"


def test_batchtopk_is_exported_and_encoded_as_sae_lens_does(gpt2, trace, tmp_path):
    from lensplorer.saes import load_sae

    package = sae_lens()
    training = package.BatchTopKTrainingSAE(package.BatchTopKTrainingSAEConfig(d_in=32, d_sae=96, k=5.0))
    training.cfg.metadata.model_name, training.cfg.metadata.hook_name = trace.info.name, tiny_saes.RESIDUAL
    training.topk_threshold.fill_(0.03)
    with pytest.raises(SAEError, match=r"Architecture: the SAE has batchtopk, in training, here it is inference.*save_inference_model"):
        feature_activations(trace, training)
    training.save_inference_model(tmp_path / "sae")
    loaded = load_sae(folder=tmp_path / "sae")
    expected = package.SAE.load_from_disk(tmp_path / "sae").encode(trace[tiny_saes.RESIDUAL]).detach()
    assert loaded.cfg.architecture() == "jumprelu" and 0 < float((expected > 0).float().mean()) < 0.5
    result = feature_activations(trace, loaded, k=96, exclude=())
    assert np.array_equal(dense(result, trace, 96), expected.numpy())


@pytest.mark.parametrize("architecture", tiny_saes.ARCHITECTURES)
def test_reconstruction_is_sae_lens_forward_and_error_is_the_rest(architecture, gpt2, trace):
    sae = tiny_saes.of(gpt2, architecture)
    site = check_sae(gpt2, sae)
    source, target = site.input(trace[site.read]), site.target(trace[site.write])
    reconstruction = encode_and_decode(sae, source)[1]
    assert torch.allclose(reconstruction, sae(source), atol=1e-6)
    error = (target - reconstruction).double()
    counted = ~special_positions(trace)
    rows = target[counted].double()
    expected = 1 - float(error[counted].pow(2).sum() / (rows - rows.mean(0)).pow(2).sum())
    result = feature_activations(trace, sae)
    assert result.attrs["explained_variance"] == pytest.approx(expected, rel=1e-4)
    relative = error.pow(2).sum(-1) / target.double().pow(2).sum(-1)
    assert np.allclose(result.relative_error.values, relative.numpy(), rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox-parallel", "gemma2", "bloom"])
@pytest.mark.parametrize("architecture", ["standard", "skip_transcoder"])
def test_splicing_with_the_error_term_changes_no_logit(name, architecture, tiny_model):
    model = tiny_model(name)
    own = run_trace(model, PROMPT, prepend_bos=True)
    result = splice_fidelity(own, tiny_saes.of(model, architecture), error_term=True, exclude=())
    assert result.attrs["max_logit_change"] <= 1e-5
    assert result.attrs["loss_recovered"] == pytest.approx(1, abs=1e-4) or np.isnan(result.attrs["loss_recovered"])
    without = splice_fidelity(own, tiny_saes.of(model, architecture), exclude=())
    assert without.attrs["max_logit_change"] > 1e-3, "the splice does reach the model"


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_splicing_leaves_no_hook_behind(name, tiny_model):
    model = tiny_model(name)
    before = run_trace(model, PROMPT, reads=[]).logits
    splice_fidelity(run_trace(model, PROMPT, prepend_bos=True), tiny_saes.of(model))
    assert torch.equal(run_trace(model, PROMPT, reads=[]).logits, before)


def test_a_perfect_sae_explains_everything_and_recovers_the_loss(gpt2, trace):
    sae = tiny_saes.of(gpt2)
    eye = torch.eye(32)
    sae.W_enc.data, sae.W_dec.data = torch.cat([eye, -eye, 0 * eye], 1), torch.cat([eye, -eye, 0 * eye], 0)
    sae.b_enc.data.zero_(), sae.b_dec.data.zero_()
    assert feature_activations(trace, sae).attrs["explained_variance"] == pytest.approx(1, abs=1e-6)
    result = splice_fidelity(trace, sae)
    assert result.attrs["max_logit_change"] < 1e-5 and result.attrs["mean_loss_spliced"] == pytest.approx(result.attrs["mean_loss_clean"])
    assert np.allclose(result.kl, 0, atol=1e-5)


def test_losses_are_those_of_a_run_with_the_activation_replaced(gpt2, trace):
    sae = tiny_saes.of(gpt2)
    replaced = {"spliced": lambda x: sae(x), "zero": torch.zeros_like}
    result = splice_fidelity(trace, sae, exclude=())
    for name, edit in replaced.items():
        with gpt2.hooks(fwd_hooks=[(tiny_saes.RESIDUAL, lambda x, hook, edit=edit: edit(x))]):
            logits = gpt2(trace.tokens[None])[0]
        expected = -logits[:-1].log_softmax(-1).gather(1, trace.tokens[1:, None])[:, 0]
        assert np.allclose(result[f"loss_{name}"].values[1:], expected.detach().numpy(), atol=1e-4)
    clean, spliced, zero = (result.attrs[f"mean_loss_{name}"] for name in ("clean", "spliced", "zero"))
    expected = (zero - spliced) / (zero - clean) if zero > clean else float("nan")
    assert result.attrs["loss_recovered"] == pytest.approx(expected, nan_ok=True)


def test_a_transcoder_reads_the_mlp_input_and_predicts_its_output(gpt2, trace):
    sae = tiny_saes.of(gpt2, "transcoder")
    assert set(sae_reads(gpt2, sae)) == {tiny_saes.MLP_IN, tiny_saes.MLP_OUT}
    result = feature_activations(trace, sae, k=96, exclude=())
    assert np.array_equal(dense(result, trace, 96), sae.encode(trace[tiny_saes.MLP_IN]).numpy())
    assert not np.array_equal(dense(result, trace, 96), sae.encode(trace["blocks.1.hook_resid_mid"]).numpy())
    assert result.attrs["hook_out"] == tiny_saes.MLP_OUT
    narrow = run_trace(gpt2, PROMPT, prepend_bos=True, reads=[tiny_saes.MLP_IN])
    with pytest.raises(TraceError, match="hook_mlp_out"):
        feature_activations(narrow, sae)


def test_special_positions_are_left_out_and_said_so(gpt2, trace):
    sae = tiny_saes.of(gpt2)
    result = feature_activations(trace, sae)
    assert (result.feature.values[0] == -1).all() and np.isnan(result.activation.values[0]).all()
    assert (result.feature.values[1:, 0] >= 0).all()
    assert result.attrs["excluded"] == "special tokens: positions 0"
    everything = feature_activations(trace, sae, exclude=())
    assert everything.attrs["excluded"] == "none" and everything.feature.values[0, 0] >= 0
    assert everything.attrs["l0"] == pytest.approx(float(everything.active.mean()))
    assert result.attrs["l0"] == pytest.approx(float(everything.active[1:].mean()))
    chosen = feature_activations(trace, sae, exclude=[0, -1])
    assert chosen.attrs["excluded"] == f"as asked: positions 0, {len(trace) - 1}" and (chosen.feature.values[-1] == -1).all()


def test_features_see_an_intervention(gpt2, trace):
    from lensplorer.interventions import ablate_head

    changed = run_trace(gpt2, PROMPT, prepend_bos=True, interventions=[ablate_head(0, 1)])
    sae = tiny_saes.of(gpt2)
    assert not np.array_equal(feature_activations(changed, sae).activation, feature_activations(trace, sae).activation)


def test_heads_are_joined_for_an_sae_of_hook_z(gpt2, trace):
    hook = "blocks.1.attn.hook_z"
    for reshape in ("hook_z", "none"):
        sae = tiny_saes.of(gpt2, hook=hook, reshape_activations=reshape)
        result = feature_activations(trace, sae, k=96, exclude=())
        plain = tiny_saes.of(gpt2, hook=hook)
        assert np.array_equal(dense(result, trace, 96), plain.encode(trace[hook].flatten(-2)).numpy())
        assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-5


def test_one_head_alone(gpt2, trace):
    sae = tiny_saes.of(gpt2, hook="blocks.1.attn.hook_z", d_in=8, metadata={"hook_head_index": 2})
    result = feature_activations(trace, sae, k=96, exclude=())
    assert np.array_equal(dense(result, trace, 96), sae.encode(trace["blocks.1.attn.hook_z"][:, 2]).numpy())
    assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-5


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalisation_at_each_position_is_sae_lens_own(normalisation, gpt2, trace):
    sae = tiny_saes.of(gpt2, normalize_activations=normalisation)
    result = feature_activations(trace, sae, k=96, exclude=())
    assert np.array_equal(dense(result, trace, 96), sae.encode(trace[tiny_saes.RESIDUAL]).numpy())
    assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-5


# -- labels --------------------------------------------------------------------------------------------------------------------------


def test_labels_are_added_when_asked(gpt2, trace):
    sae = tiny_saes.of(gpt2)
    assert "label" not in feature_activations(trace, sae, k=2)
    result = feature_activations(trace, sae, k=2, labels=True)
    assert result.label.values[0, 0] == "" and all(result.label.values[1:].ravel() != "")


# -- across layers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saes(gpt2):
    """SAEs of three layers; the last two share their dictionary, permuted."""
    first, second, third = (tiny_saes.of(gpt2, hook=f"blocks.{layer}.hook_resid_post", seed=seed) for layer, seed in ((0, 3), (1, 5), (2, 5)))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    third.W_enc.data, third.b_enc.data, third.W_dec.data = second.W_enc[:, order], second.b_enc[order], second.W_dec[order]
    return [first, second, third], order


def test_links_are_decoder_cosine_and_coactivation(gpt2, trace, saes):
    dictionaries, _ = saes
    result = cross_layer_features(trace, dictionaries, k=12)
    assert result.feature.dims == ("layer", "rank") and list(result.layer.values) == [0, 1, 2]
    counted = ~special_positions(trace)
    for link in (0, 1):
        lower, upper = dictionaries[link], dictionaries[link + 1]
        here = encode(lower, trace[f"blocks.{link}.hook_resid_post"])[counted]
        there = encode(upper, trace[f"blocks.{link + 1}.hook_resid_post"])[counted]
        for rank in range(3):
            for other in range(3):
                a, b = int(result.feature[link, rank]), int(result.feature[link + 1, other])
                cosine = torch.nn.functional.cosine_similarity
                assert float(result.similarity[link, rank, other]) == pytest.approx(float(cosine(lower.W_dec[a], upper.W_dec[b], dim=0)), abs=1e-5)
                assert float(result.coactivation[link, rank, other]) == pytest.approx(float(cosine(here[:, a], there[:, b], dim=0)), abs=1e-5)


def test_a_path_follows_the_same_direction(trace, saes):
    dictionaries, order = saes
    result = cross_layer_features(trace, list(reversed(dictionaries)), k=40, threshold=0.99)
    followed = 0
    for rank, successor in enumerate(result.successor.values[1]):
        if successor < 0:
            continue
        followed += 1
        assert int(order[int(result.feature[2, successor - 1])]) == int(result.feature[1, rank])
        assert result.path[1, rank] == result.path[2, successor - 1]
    assert followed > 3 and (result.successor.values[0] == -1).all() and (result.successor.values[2] == -1).all()
    numbers = result.path.values[result.feature.values >= 0]
    assert (numbers >= 0).all() and len(set(result.path.values[1][result.path.values[1] >= 0])) == (result.feature.values[1] >= 0).sum()


def test_layers_that_cannot_be_followed_are_refused(gpt2, trace, saes):
    dictionaries, _ = saes
    with pytest.raises(AnalysisError, match="at least two layers, got 1 SAE"):
        cross_layer_features(trace, dictionaries[:1])
    with pytest.raises(AnalysisError, match=r"One SAE per layer.*block 1"):
        cross_layer_features(trace, [dictionaries[1], dictionaries[1]])
    with pytest.raises(AnalysisError, match="cannot be compared"):
        cross_layer_features(trace, [dictionaries[0], tiny_saes.of(gpt2, hook="blocks.1.attn.hook_z")])
    with pytest.raises(AnalysisError, match=r"Position 0 .* left out of (the )?rankings"):
        cross_layer_features(trace, dictionaries, position=0)


# -- bad input -----------------------------------------------------------------------------------------------------------------------


def test_bad_options_are_refused(gpt2, trace):
    sae = tiny_saes.of(gpt2)
    with pytest.raises(AnalysisError, match="k must be at least 1, got 0"):
        feature_activations(trace, sae, k=0)
    with pytest.raises(TraceError, match="Position 99 is outside"):
        feature_activations(trace, sae, exclude=[99])
    with pytest.raises(ArgumentError, match="wants an SAE as sae"):
        feature_activations(trace, "gpt2-small-res-jb")


def test_one_token_has_no_explained_variance(gpt2):
    trace = run_trace(gpt2, "t", prepend_bos=True)
    result = feature_activations(trace, tiny_saes.of(gpt2))
    assert np.isnan(result.attrs["explained_variance"]) and result.feature.values[1, 0] >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        only_bos = feature_activations(run_trace(gpt2, [0]), tiny_saes.of(gpt2))
    assert np.isnan(only_bos.attrs["l0"]) and (only_bos.feature.values == -1).all()
