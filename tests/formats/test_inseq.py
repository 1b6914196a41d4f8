"""Inseq's JSON: files that the real Inseq wrote are read as it reads them; what is written here is read back, and damage is named."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import lensplorer as lp
from lensplorer.errors import FormatError
from lensplorer.formats.inseq import from_inseq, to_inseq

DATA = Path(__file__).parent / "data"
SAID = json.loads((DATA / "said_by_inseq.json").read_text())


def as_inseq_says(content):
    return {
        "target": [[piece, token_id] for piece, token_id in zip(content.pieces, content.token_ids)],
        "start": content.start,
        "end": len(content.pieces),
        "scores": [[None if np.isnan(value) else value for value in row] for row in content.scores.T.tolist()],
    }


def assert_read_alike(contents, said):
    assert len(contents) == len(said["sequences"])
    for content, sequence in zip(contents, said["sequences"]):
        ours = as_inseq_says(content)
        for key in ("target", "start", "end"):
            assert ours[key] == sequence[key], key
        np.testing.assert_allclose(np.array(ours["scores"], dtype=float), np.array(sequence["scores"], dtype=float), rtol=2e-6, atol=1e-9)
        assert content.model == said["info"]["model_name"] and content.method == said["info"]["attribution_method"]
        assert set(content.step_scores) == set(sequence["step_scores"])
        for name, values in sequence["step_scores"].items():
            np.testing.assert_allclose(content.step_scores[name], values, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SAID))
def test_files_of_the_real_inseq(name):
    """One score per pair (occlusion), one per embedding dimension (gradients), one per layer and head (attention); packed or not."""
    contents = lp.read_inseq(DATA / name)
    assert_read_alike(contents, SAID[name])
    assert contents[0].prompt == "Once upon a time" and contents[0].texts[4] == " time"


def test_a_file_of_the_real_inseq_holds_the_numbers_of_this_library(storyworld):
    """The norm of input × gradient of the probability, which Inseq took of the model in bfloat16, row by row."""
    content = lp.read_inseq(DATA / "input_x_gradient.json")[0]
    trace = lp.run_trace(storyworld, list(content.token_ids), gradients=True)
    ours = lp.attribution_matrix(trace, content.start, method="input_x_gradient_norm", objective="prob").attribution.values
    for row, theirs in zip(ours, np.nan_to_num(content.scores)):
        assert row @ theirs > 0.999 * np.linalg.norm(row) * np.linalg.norm(theirs)
    np.testing.assert_allclose(ours[0], np.nan_to_num(content.scores[0]), rtol=0.02, atol=1e-6)


def test_there_and_back(explained, tmp_path):
    content = explained[2]
    for name in ("a.json", "a.json.gz"):
        lp.write_inseq(tmp_path / name, content)
        (back,) = lp.read_inseq(tmp_path / name)
        for field in ("pieces", "token_ids", "texts", "start", "model", "version", "prompt", "method", "generation", "timestamp"):
            assert getattr(back, field) == getattr(content, field), field
        np.testing.assert_array_equal(back.scores, content.scores)
        np.testing.assert_array_equal(back.step_scores["value"], np.float32(content.step_scores["value"]))
    assert (tmp_path / "a.json.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_tokenlens_to_inseq_and_back(explained, tmp_path):
    content = explained[2]
    lp.write_tokenlens(tmp_path / "a.json", content)
    lp.write_inseq(tmp_path / "b.json", lp.read_tokenlens(tmp_path / "a.json"))
    lp.write_tokenlens(tmp_path / "c.json", lp.read_inseq(tmp_path / "b.json")[0])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    lp.write_tokenlens(tmp_path / "d.json", lp.read_inseq(DATA / "attention.json")[0])
    read = lp.read_tokenlens(tmp_path / "d.json")
    assert read.method == "attention" and read.texts[:2] == ("<|endoftext|>", "Once")


def test_several_sequences(explained, storyworld, tmp_path):
    trace = lp.run_trace(storyworld, "The capital of France is")
    other = lp.attributions(trace, lp.attribution_matrix(trace, -1, method="occlusion"))
    lp.write_inseq(tmp_path / "a.json", [explained[2], other])
    first, second = lp.read_inseq(tmp_path / "a.json")
    assert (first.prompt, second.prompt) == ("Once upon a time", "The capital of France")
    np.testing.assert_array_equal(second.scores, other.scores)
    with pytest.raises(FormatError, match="one model and method"):
        to_inseq([explained[2], type(other)(**{**vars(other), "method": "saliency"})])
    with pytest.raises(FormatError, match="at least one"):
        to_inseq([])


def test_a_model_with_an_encoder(explained):
    """Source and target side make one row of tokens, the source first."""
    document = copy.deepcopy(to_inseq(explained[2]))
    fields = document["attributes"]["sequence_attributions"][0]["attributes"]
    fields["source"], source_scores = fields["target"][:3], np.arange(12, dtype=np.float32).reshape(3, 4)
    fields["source_attributions"] = base64.b64encode(save({"attribution": source_scores})).decode()
    (content,) = from_inseq(document)
    assert len(content.pieces) == 12 and content.start == 8
    np.testing.assert_array_equal(content.scores[:, :3], source_scores.T)
    np.testing.assert_array_equal(content.scores[:, 3:], explained[2].scores)


def sequence(document):
    return document["attributes"]["sequence_attributions"][0]["attributes"]


def packed(array, name="attribution"):
    return base64.b64encode(save({name: array})).decode()


CHANGES = {
    "no instance": (lambda d: d.pop("__instance_type__"), "use_primitives"),
    "another class": (lambda d: d["__instance_type__"].__setitem__(1, "Batch"), "'Batch'"),
    "no sequences": (lambda d: d["attributes"].pop("sequence_attributions"), "sequence_attributions"),
    "info a list": (lambda d: d["attributes"].update(info=[1]), "info"),
    "no target": (lambda d: sequence(d).pop("target"), "target"),
    "a token without id": (lambda d: sequence(d)["target"][3]["attributes"].pop("id"), r"source\[3\]"),
    "start after end": (lambda d: sequence(d).update(attr_pos_start=99), "attr_pos_start"),
    "start a text": (lambda d: sequence(d).update(attr_pos_start="1"), "attr_pos_start"),
    "not base64": (lambda d: sequence(d).update(target_attributions="%%%"), "safetensors"),
    "not safetensors": (lambda d: sequence(d).update(target_attributions=base64.b64encode(b"x" * 50).decode()), "safetensors"),
    "another tensor": (lambda d: sequence(d).update(target_attributions=packed(np.zeros((9, 4), np.float32), "other")), "safetensors"),
    "a number": (lambda d: sequence(d).update(target_attributions=3), "safetensors"),
    "a wrong shape": (lambda d: sequence(d).update(target_attributions=packed(np.zeros((9, 3), np.float32))), r"\(9, 3\)"),
    "one dimension": (lambda d: sequence(d).update(target_attributions=packed(np.zeros(9, np.float32))), r"\(9,\)"),
    "dimensions that nobody explains": (lambda d: sequence(d).update(target_attributions=packed(np.zeros((9, 4, 2), np.float32))), "aggregate"),
    "step scores a list": (lambda d: sequence(d).update(step_scores=[1]), "step_scores"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damage_is_named(explained, change, tmp_path):
    document = copy.deepcopy(to_inseq(explained[2]))
    damage, said = CHANGES[change]
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=said) as raised:
        lp.read_inseq(path)
    assert "damaged.json" in str(raised.value)
