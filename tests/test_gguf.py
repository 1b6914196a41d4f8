"""GGUF files: the weights read are those written, the logits those of the model they were written from, and what is wrong is a sentence."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from lensplorer.catalogue import find_model
from lensplorer.errors import ModelError
from lensplorer.gguf_model import load_gguf, read_header
from lensplorer.models import load_model, model_info
from lensplorer.trace import run_trace
from tests import tiny, tiny_gguf

IDS = [0, 290, 302, 313, 306, 262, 305, 17, 40, 41, 42, 300, 7, 299, 310, 55]  # longer than the tiny sliding window
READ = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "phi3"]


def refused(path, **options) -> str:
    """The one sentence or two that say why."""
    with pytest.raises(ModelError) as caught:
        load_model(str(path), **options)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny llama in a file."""
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "llama.gguf", add_bos=False)


@pytest.fixture(scope="module")
def model(llama):
    return load_model(str(llama))


# -- what is read ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_weights_and_logits_are_those_of_the_model_written(name, tmp_path):
    written = tiny.hf_model(name)
    path = tiny_gguf.write(tmp_path / "tiny.gguf", name, hf_model=written)
    read, _ = load_gguf(path, str(path), torch.float32)
    assert type(read) is type(written)
    for key, value in written.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, rtol=1e-6, atol=3e-7)  # Gemma's norms are stored one higher: rounded
    with torch.no_grad():
        expected = written(torch.tensor([IDS])).logits[0]
    model = load_model(str(path))
    logits = run_trace(model, IDS).logits
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()
    info = model_info(model)
    assert info.difference is not None and info.difference <= 5e-5
    assert info.architecture == tiny.ARCHITECTURES[name][0] and info.n_ctx == tiny.N_CTX


def test_quantised_weights_are_the_numbers_they_stand_for(tmp_path):
    import gguf

    written = tiny.hf_model("qwen2")
    path = tiny_gguf.write(tmp_path / "q8.gguf", "qwen2", hf_model=written, quantised=True)
    read, _ = load_gguf(path, "q8.gguf", torch.float32)
    matrix = written.model.layers[1].mlp.up_proj.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    stands_for = gguf.dequantize(gguf.quantize(matrix, kind), kind)
    found = read.model.layers[1].mlp.up_proj.weight.detach().numpy()
    assert np.array_equal(found, stands_for) and not np.array_equal(found, matrix)


def test_nothing_says_any_longer_that_it_is_quantised(llama, tmp_path):
    read, tokenizer = load_gguf(llama, "llama.gguf", torch.float32)
    assert "quantization_config" not in read.config.to_dict() and not hasattr(read, "hf_quantizer")
    read.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = run_trace(load_model(str(tmp_path / "saved")), IDS).logits
    torch.testing.assert_close(again, run_trace(load_model(str(llama)), IDS).logits)


def test_tied_embeddings_stay_one_matrix(tmp_path):
    written = tiny.hf_model("llama", tie_word_embeddings=True)
    path = tiny_gguf.write(tmp_path / "tied.gguf", hf_model=written)
    assert "output.weight" not in read_header(path, "tied").tensors
    read, _ = load_gguf(path, "tied", torch.float32)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    with torch.no_grad():
        torch.testing.assert_close(run_trace(load_model(str(path)), IDS).logits, written(torch.tensor([IDS])).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["the cat sat on the mat", "Mary and John,  1 + 2 = 3 é ü 日本 🙂\n", ""])
def test_the_tokenizer_is_the_one_written(model, text):
    assert model.tokenizer.encode(text, add_special_tokens=False) == tiny.tokenizer().encode(text, add_special_tokens=False)


def test_special_tokens_and_the_chat_template(model):
    written, read = tiny.tokenizer(), model.tokenizer
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (written.bos_token_id, written.eos_token_id, written.pad_token_id)
    chat = [{"role": "user", "content": "the cat"}]
    assert run_trace(model, chat).tokens.tolist() == written.encode("<|user|>the cat<|assistant|>", add_special_tokens=False)


@pytest.mark.parametrize(("add_bos", "expected"), [(None, True), (True, True), (False, False)])
def test_the_file_says_whether_a_text_begins_with_bos(add_bos, expected, tmp_path):
    model = load_model(str(tiny_gguf.write(tmp_path / "tiny.gguf", add_bos=add_bos)))
    assert model_info(model).default_prepend_bos is expected
    ids = tiny.tokenizer().encode("the cat", add_special_tokens=False)
    assert run_trace(model, "the cat").tokens.tolist() == [0] * expected + ids
    assert model.to_tokens("the cat")[0].tolist() == [0] * expected + ids
    assert run_trace(model, "the cat", prepend_bos=True).tokens.tolist() == [0, *ids]


@pytest.mark.parametrize(
    "options, backend, processing",
    [({"backend": "bridge"}, "bridge", "none"), ({"processing": "none"}, "hooked", "none"), ({"dtype": "bfloat16"}, "hooked", "default")],
)
def test_options_work_as_for_a_folder(llama, model, options, backend, processing):
    other = load_model(str(llama), **options)
    info = model_info(other)
    assert (info.backend, info.processing, info.dtype) == (backend, processing, options.get("dtype", "float32"))
    assert info.default_prepend_bos is False
    logits, expected = run_trace(other, IDS).logits, run_trace(model, IDS).logits
    assert logits.dtype == getattr(torch, info.dtype)
    assert (logits.float() - expected).norm() <= (6e-2 if info.dtype == "bfloat16" else 1e-5) * expected.norm()


def test_float64_is_computed_in_float64(llama):
    assert run_trace(load_model(str(llama), dtype="float64"), IDS).logits.dtype == torch.float64


def test_settings_that_transformers_leaves_out_are_taken_from_the_file(tmp_path):
    """It reads GPT-2's context length into another key, and no head width for Qwen 3."""
    gpt2, _ = load_gguf(tiny_gguf.write(tmp_path / "gpt2.gguf", "gpt2"), "gpt2", torch.float32)
    assert gpt2.config.n_positions == tiny.N_CTX != type(gpt2.config)().n_positions
    qwen3, _ = load_gguf(tiny_gguf.write(tmp_path / "qwen3.gguf", "qwen3"), "qwen3", torch.float32)
    assert qwen3.config.head_dim == 8 != type(qwen3.config)().head_dim


# -- where it is -----------------------------------------------------------------------------------------------------------------------


def test_a_file_a_folder_with_one_and_a_file_with_a_link(llama, tmp_path, monkeypatch):
    assert find_model(str(llama)).kind == "gguf" and find_model(str(llama)).gguf == "llama.gguf"
    assert find_model(str(llama.parent)).gguf == "llama.gguf"
    (tmp_path / "link.gguf").symlink_to(llama)
    (tmp_path / "blob").write_bytes(llama.read_bytes())
    (tmp_path / "hub.GGUF").symlink_to(tmp_path / "blob")  # as in the hub's cache
    monkeypatch.chdir(tmp_path)
    for name in ("./link.gguf", "link.gguf", "hub.GGUF"):
        assert model_info(load_model(name)).name == name
    monkeypatch.chdir(llama.parent.parent)
    assert find_model(llama.parent.name).gguf == "llama.gguf"


def test_what_lies_beside_the_file_is_not_read(tmp_path, monkeypatch):
    """Neither a file of the same name in the working directory, nor another model's tokenizer in the folder."""
    (tmp_path / "here").mkdir(), (tmp_path / "there").mkdir()
    tiny_gguf.write(tmp_path / "here" / "tiny.gguf", hf_model=tiny.hf_model("llama", seed=1))
    there = tiny_gguf.write(tmp_path / "there" / "tiny.gguf", hf_model=tiny.hf_model("llama", seed=2))
    (tmp_path / "there" / "tokenizer.json").write_text("{}")
    (tmp_path / "there" / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    (tmp_path / "there" / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    with torch.no_grad():
        expected = tiny.hf_model("llama", seed=2)(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(run_trace(load_model(str(there)), IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_in_hugging_face_format_is_one_whatever_else_it_holds(llama, tmp_path):
    folder = tiny.save("gpt2", tmp_path / "m")
    (folder / "other.gguf").write_bytes(llama.read_bytes())
    assert find_model(str(folder)).kind == "folder"
    assert model_info(load_model(str(folder))).architecture == "GPT2LMHeadModel"


def test_several_files_in_a_folder_are_listed(tmp_path):
    for name in ("b.Q8_0.gguf", "a.Q4_0.gguf"):
        (tmp_path / name).touch()
    assert "2 GGUF files: a.Q4_0.gguf, b.Q8_0.gguf. Name one" in refused(tmp_path)


def test_a_missing_file_is_named_with_those_near_it(tmp_path):
    (tmp_path / "model.Q4_0.gguf").touch()
    said = refused(tmp_path / "model.Q5_0.gguf")
    assert "There is no file" in said and "'model.Q4_0.gguf'" in said


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with nothing in it; returns a function that puts a file of a repository there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo_id, commit, file, content):
        repository = tmp_path / "hub" / f"models--{repo_id.replace('/', '--')}"
        target = repository / "snapshots" / commit / file
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    return put


@pytest.mark.parametrize("file", ["tiny.Q8_0.gguf", "folder/tiny.gguf"])
def test_a_file_of_a_repository_on_the_hub(llama, hub, file):
    commit = "0123456789" * 4
    hub("owner/tiny-GGUF", commit, file, llama.read_bytes())
    name = f"owner/tiny-GGUF/{file}"
    files = find_model(name)
    assert (files.kind, files.repo_id, files.revision, files.gguf) == ("hub", "owner/tiny-GGUF", commit, file)
    info = model_info(load_model(name, revision="main"))
    assert (info.name, info.revision, info.backend) == (name, commit, "hooked")
    with pytest.raises(ModelError, match="is not in the local Hugging Face cache"):
        find_model("owner/tiny-GGUF/other.gguf")
    with pytest.raises(ModelError, match="is not in the local Hugging Face cache"):
        find_model(name, revision="another")


# -- what is wrong ---------------------------------------------------------------------------------------------------------------------


def test_without_the_package_what_installs_it_is_named(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert 'pip install "lensplorer[gguf]"' in refused(llama)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(100), b'{"model": 1}'])
def test_what_is_no_gguf_file(content, tmp_path):
    (tmp_path / "m.gguf").write_bytes(content)
    assert "is not a GGUF file" in refused(tmp_path / "m.gguf")


def test_cut_short_anywhere(llama, tmp_path):
    """In the header, among the tokens, between the header and the weights, within the weights, and before the very last weight."""
    whole = llama.read_bytes()
    header = read_header(llama, "llama")
    data = 4 * sum(int(np.prod(shape)) for shape in header.tensors.values())
    begins = len(whole) - data  # every tiny tensor is a multiple of 32 bytes: no padding
    for length in (5, 16, 23, 24, 40, 200, 3000, begins // 2, begins - 1, begins, begins + 4, begins + data // 2, len(whole) - 4):
        path = tmp_path / f"{length}.gguf"
        path.write_bytes(whole[:length])
        assert "is cut short" in refused(path), length


@pytest.mark.parametrize("value", [2**63, 2**31])
@pytest.mark.parametrize("at", [8, 16, 24])
def test_counts_and_lengths_that_cannot_be(llama, tmp_path, at, value):
    """The numbers of tensors and of settings, and the length of the first key."""
    damaged = bytearray(llama.read_bytes())
    damaged[at : at + 8] = value.to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(damaged)
    said = refused(tmp_path / "m.gguf")
    assert "is cut short" in said or "is damaged" in said


def test_noise_in_the_header_is_a_sentence(llama, tmp_path):
    """Whatever byte is wrong, the answer is a model or a ModelError, and soon."""
    whole = llama.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[int(generator.integers(4, 1500))] = int(generator.integers(256))
        path = tmp_path / "m.gguf"
        path.write_bytes(damaged)
        try:
            read_header(path, "m.gguf")
            outcomes.add("read")
        except ModelError as error:
            outcomes.add(str(error).split("'m.gguf' ")[1][:10])
    assert len(outcomes) > 2


def test_a_version_that_is_not_read(llama, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x01\x00\x00\x00" + llama.read_bytes()[8:])
    assert "is GGUF of version 1, and versions 2 and 3 are read" in refused(tmp_path / "m.gguf")


def test_an_unknown_architecture(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf", architecture="madeup")
    said = refused(path)
    assert "architecture 'madeup'" in said and "Hugging Face format" in said


@pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "jina-bert-v2", "t5", "t5encoder", "gemma-embedding"])
def test_an_encoder(architecture, tmp_path):
    said = refused(tiny_gguf.write(tmp_path / "m.gguf", architecture=architecture))
    assert "is an encoder" in said and f"'{architecture}'" in said and "Expected a decoder" in said


def test_a_decoder_made_an_encoder(tmp_path):
    assert "is an encoder" in refused(tiny_gguf.write(tmp_path / "m.gguf", settings={"attention.causal": False}))


def test_one_part_of_several(llama, tmp_path):
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(llama.read_bytes())
    assert "one part of a model in 3 GGUF files" in refused(tmp_path / "m-00001-of-00003.gguf")


def test_without_a_tokenizer(tmp_path):
    assert "has no tokenizer" in refused(tiny_gguf.write(tmp_path / "m.gguf", tokenizer=False))


@pytest.mark.parametrize(
    "key, value",
    [
        ("rope.scaling.type", "linear"),
        ("rope.scaling.factor", 4.0),
        ("attention.sliding_window", 8),
        ("attention.scale", 0.5),
        ("expert_count", 4),
    ],
)
def test_a_setting_that_would_be_lost_is_refused(key, value, tmp_path):
    """transformers reads a llama without a word on these, and computes another model."""
    said = refused(tiny_gguf.write(tmp_path / "m.gguf", settings={key: value}))
    assert f"llama.{key} = {value!r}" in said


@pytest.mark.parametrize(
    "settings",
    [{"feed_forward_length": 128}, {"rope.dimension_count": 4}, {"attention.head_count_kv": 4}, {"embedding_length": 2**31}, {"vocab_size": 7}],
)
def test_settings_that_are_not_those_of_the_weights(settings, tmp_path):
    assert "has 48,352 weights, and the model that transformers makes of it" in refused(tiny_gguf.write(tmp_path / "m.gguf", settings=settings))


def test_blocks_that_are_not_there_take_no_memory(tmp_path):
    assert "announces 2,000,000,000 blocks" in refused(tiny_gguf.write(tmp_path / "m.gguf", settings={"block_count": 2_000_000_000}))


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"])
def test_a_setting_that_is_not_there_is_not_guessed(key, tmp_path):
    assert f"does not say its llama.{key}" in refused(tiny_gguf.write(tmp_path / "m.gguf", settings={key: None}))
    if "count" in key:
        assert "\n" not in refused(tiny_gguf.write(tmp_path / "m.gguf", settings={key: 0}))


@pytest.mark.parametrize("settings", [{"rope.scaling.type": "none"}, {"attention.causal": True}, {"attention.sliding_window": 64}])
def test_a_setting_that_changes_nothing_is_taken(settings, tmp_path, model):
    read = load_model(str(tiny_gguf.write(tmp_path / "m.gguf", settings=settings)))
    torch.testing.assert_close(run_trace(read, IDS).logits, run_trace(model, IDS).logits)


def test_a_tensor_that_would_be_lost_is_refused(tmp_path):
    """Llama 3's rotary scaling is in a tensor, and biases are in tensors: transformers passes over both."""
    for name, values in {"rope_freqs.weight": np.ones(4, np.float32), "blk.0.attn_q.bias": np.ones(32, np.float32)}.items():
        path = tiny_gguf.write(tmp_path / f"{name}.gguf", tensors={name: values})
        said = refused(path)
        assert f"'{name}' would not be read. Its numbers would be wrong" in said


def test_a_missing_tensor_is_refused(tmp_path):
    said = refused(tiny_gguf.write(tmp_path / "m.gguf", leave_out=("blk.1.ffn_up.weight",)))
    assert "'blk.1.ffn_up.weight' would be missing" in said
