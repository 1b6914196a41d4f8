"""Model folders that are damaged, cut short, foreign or gone: each ends in one sentence, and nothing made up ever runs."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lensplorer as lp
from lensplorer import tokens
from lensplorer.errors import ModelError, PromptError, TokenError
from tests import tiny

WEIGHT = "transformer.h.1.attn.c_attn.weight"
DEEP = b"[" * 100_000


def written(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: float) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(keep * (folder / name).stat().st_size)])


def gone(*names: str) -> Any:
    return lambda folder: [(folder / name).unlink() for name in names]


def changed(name: str, **values: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **values}), encoding="utf-8")

    return change


def config(**values: Any) -> Any:
    return changed("config.json", **values)


def weights(edit: Any) -> Any:
    def change(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def folder_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def index_instead(content: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


#: what was done to the folder → what the sentence says
REFUSED: dict[str, tuple[Any, str]] = {
    **{
        f"config.json {name}": (written("config.json", content), "cannot be loaded by transformers")
        for name, content in {
            "list": b"[]",
            "empty": b"",
            "cut": b'{"a":',
            "null": b"null",
            "number": b"3",
            "deep": DEEP,
            "binary": b"\xff\xfe\0",
        }.items()
    },
    **{
        f"config.json {values}": (config(**values), "cannot be loaded by transformers")
        for values in (
            {"model_type": ["gpt2"]},
            {"model_type": "nonsense"},
            {"n_layer": "three"},
            {"n_layer": 1e6},
            {"n_head": 0},
            {"n_head": 5},
            {"n_embd": None},
            {"n_embd": [32]},
            {"n_embd": -32},
            {"vocab_size": "320"},
            {"vocab_size": -1},
            {"n_positions": -5},
            {"activation_function": "nonsense"},
            {"activation_function": 3},
            {"layer_norm_epsilon": "small"},
            {"bos_token_id": "zero"},
            {"quantization_config": 5},
            {"dtype": "float77"},
        )
    },
    **{
        f"config.json {values}": (config(**values), "other shapes than its config.json says")
        for values in ({"vocab_size": 10}, {"vocab_size": 1000}, {"vocab_size": 0}, {"n_positions": 0}, {"n_embd": 64})
    },
    **{f"config.json {values}": (config(**values), "its weights have more") for values in ({"n_layer": 2}, {"n_layer": 0}, {"n_layer": -1})},
    "more blocks than weights": (config(n_layer=4), "would be random numbers"),
    "epsilon NaN": (config(layer_norm_epsilon=float("nan")), "not finite on a plain prompt"),
    **{
        f"tokenizer.json {name}": (written("tokenizer.json", content), "cannot be loaded by transformers")
        for name, content in {"list": b"[]", "table": b"{}", "empty": b"", "null": b"null", "deep": DEEP, "binary": b"\xff\xfe\0"}.items()
    },
    "tokenizer.json cut": (cut("tokenizer.json", 0.5), "cannot be loaded by transformers"),
    "tokenizer.json without a model": (changed("tokenizer.json", model=None), "cannot be loaded by transformers"),
    "tokenizer.json with a list for a model": (changed("tokenizer.json", model=[1, 2]), "cannot be loaded by transformers"),
    "no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), "makes no tokens of a text"),
    "tokenizer_config.json list": (written("tokenizer_config.json", b"[]"), "cannot be loaded by transformers"),
    "tokenizer_config.json cut": (cut("tokenizer_config.json", 0.5), "cannot be loaded by transformers"),
    "BOS a number": (changed("tokenizer_config.json", bos_token=5), "cannot be loaded by transformers"),
    "generation_config.json list": (written("generation_config.json", b"[]"), "cannot be loaded by transformers"),
    "weights empty": (written("model.safetensors", b""), "corrupt or cut short"),
    "weights cut": (cut("model.safetensors", 0.9), "corrupt or cut short"),
    "weights cut in the header": (cut("model.safetensors", 0.001), "corrupt or cut short"),
    "weights binary": (written("model.safetensors", b"\xff" * 64), "corrupt or cut short"),
    "weights missing": (gone("model.safetensors"), "cannot be loaded by transformers"),
    "weights a folder": (folder_instead, "cannot be loaded by transformers"),
    "index list": (index_instead("[]"), "cannot be loaded by transformers"),
    "index elsewhere": (index_instead('{"weight_map": {"a": "../../x.safetensors"}, "metadata": {}}'), "cannot be loaded by transformers"),
    "no tensors": (weights(lambda tensors: tensors.clear()), "would be random numbers"),
    "a tensor missing": (weights(lambda tensors: tensors.pop(WEIGHT)), "would be random numbers"),
    "a tensor misshapen": (weights(lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 3)})), "other shapes than its config.json says"),
    "NaN weights": (weights(lambda tensors: tensors[WEIGHT].fill_(torch.nan)), rf"{WEIGHT}' hold NaN or infinity"),
    "infinite weights": (weights(lambda tensors: tensors[WEIGHT].fill_(torch.inf)), rf"{WEIGHT}' hold NaN or infinity"),
}


@pytest.fixture
def damage(tiny_folder, tmp_path) -> Any:
    """A copy of the tiny model's folder, changed."""

    def damaged(change: Any, architecture: str = "gpt2") -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder(architecture), folder)
        change(folder)
        return folder

    return damaged


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_model_is_refused_in_a_sentence(case, damage):
    change, said = REFUSED[case]
    with pytest.raises(ModelError, match=said) as raised:
        lp.load_model(str(damage(change)))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_what_is_beside_the_model_does_not_matter(damage):
    """A tensor that no model of this kind has, code that is not asked for, a template with an error in it: the model runs as ever."""

    def change(folder: Path) -> None:
        weights(lambda tensors: tensors.update({"something.else": torch.zeros(3)}))(folder)
        config(auto_map={"AutoModelForCausalLM": "evil.Evil"}, architectures=3)(folder)
        (folder / "chat_template.jinja").write_text("{% for")

    model = lp.load_model(str(damage(change)))
    assert lp.run_trace(model, "the cat").token_texts == ["<|endoftext|>", "the", " cat"]
    with pytest.raises(PromptError, match="chat template refuses these messages"):
        lp.run_trace(model, [{"role": "user", "content": "hi"}])


def test_a_tokenizer_may_know_more_than_its_model(damage):
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        content["added_tokens"].append({**content["added_tokens"][0], "id": tiny.D_VOCAB + 5, "content": "<far>"})
        content["model"]["vocab"]["<far>"] = tiny.D_VOCAB + 5
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    model = lp.load_model(str(damage(change)))
    assert len(lp.run_trace(model, "the cat")) == 3
    with pytest.raises(PromptError, match=f"is outside the vocabulary: expected 0 to {tiny.D_VOCAB - 1}"):
        lp.run_trace(model, "the <far> cat")
    with pytest.raises(TokenError, match="is outside the vocabulary"):
        lp.contrast(lp.run_trace(model, "the"), "<far>", " cat")


TEMPLATES = {
    "an error in its syntax": "{% for",
    "an unknown name": "{{ nope.x }}",
    "a division by zero": "{{ 1 / 0 }}",
    "a wrong type": "{{ messages + 1 }}",
    "a range too long": "{% for i in range(10**9) %}x{% endfor %}",
    "itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a way out": "{{ ''.__class__.__mro__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "a message that there is not": "{{ messages[5].content }}",
    "a refusal": "{{ raise_exception('no') }}",
    "half a character": "{{ '\\ud800' }}",
    "nothing": "",
    "no text": 5,
}


@pytest.mark.parametrize("holds", TEMPLATES)
def test_a_chat_template_that_fails_is_a_sentence(holds, tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATES[holds])
    with pytest.raises(PromptError):
        lp.run_trace(model, [{"role": "user", "content": "hi"}])
    assert len(lp.run_trace(model, "the cat")) == 3


def test_a_chat_template_that_does_not_end_is_stopped(tiny_model, monkeypatch):
    """Within the thread that asked, and in no other."""
    model = tiny_model("gpt2")
    monkeypatch.setattr(tokens, "_TEMPLATE_SECONDS", 0.3)
    endless = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", endless)
    found: list[BaseException] = []

    def ask() -> None:
        try:
            lp.run_trace(model, [{"role": "user", "content": "hi"}])
        except PromptError as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and "did not end within 0.3 s" in str(found[0])


def test_half_a_character_is_refused(storyworld):
    with pytest.raises(PromptError, match=r"half a character \(a lone surrogate\) at 4"):
        lp.run_trace(storyworld, "Once\ud800 upon")
    trace = lp.run_trace(storyworld, "Once")
    with pytest.raises(TokenError, match="half a character"):
        lp.contrast(trace, "\ud800", " upon")
    session = lp.Session(storyworld, "Once")
    with pytest.raises(PromptError, match="half a character"):
        session.append_text("\udfff")
    assert session.text == "Once"


@pytest.mark.parametrize(("architecture", "backend"), [("gpt2", "hooked"), ("gemma2", "bridge")])
def test_a_model_goes_on_without_its_folder(architecture, backend, damage, tmp_path):
    folder = damage(lambda folder: None, architecture)
    kept = lp.load_model(str(folder))
    assert lp.model_info(kept).backend == backend
    expected = lp.run_trace(kept, "the cat sat").logits
    again = lp.load_model(str(folder))
    shutil.rmtree(folder)
    session = lp.Session(again, "the cat sat")
    torch.testing.assert_close(session.trace().logits, expected, rtol=1e-4, atol=1e-4)
    session.sample_step(2)
    session.constrain(lp.Constraint("regex", "[a-z ]+"), from_here=True)
    session.sample_step(2)
    session.save(tmp_path / "session.json")
    session.load(tmp_path / "session.json")
    chat = lp.run_trace(again, [{"role": "user", "content": "the cat"}], gradients=True)
    assert lp.attribute(chat, "a").attrs["completeness"] < 0.1
    assert lp.head_scores(again, length=4).sizes["layer"] == 3
    with pytest.raises(ModelError, match="There is no folder"):
        lp.load_model(str(folder))
