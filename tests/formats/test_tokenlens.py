"""TokenLens JSON: the fields of the contract, the numbers of the matrix, and what is refused."""

from __future__ import annotations

import copy
import json
from datetime import datetime

import jsonschema
import numpy as np
import pytest

import lensplorer as lp
from lensplorer.errors import FormatError
from lensplorer.formats.tokenlens import from_tokenlens, to_tokenlens

TOKEN = {
    "type": "object",
    "properties": {"token": {"type": "string"}, "token_id": {"type": "integer"}, "clean_token": {"type": "string"}},
    "required": ["token", "token_id", "clean_token"],
    "additionalProperties": False,
}
MATRIX = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
METADATA = {
    "timestamp": {"type": "string", "format": "date-time"},
    "llm_id": {"type": "string"},
    "llm_version": {"type": "string"},
    "prompt": {"type": "string"},
    "attribution_method": {"type": "string"},
    "generation_params": {"type": "object"},
    "version": {"type": "string"},
}
DATA = {
    "input_tokens": {"type": "array", "items": TOKEN},
    "output_tokens": {"type": "array", "items": TOKEN},
    "association_matrix": MATRIX,
    "normalized_association": MATRIX,
}


def closed(properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


#: The fields of the contract, and no others.
SCHEMA = closed({"metadata": closed(METADATA), "data": closed(DATA)})


def test_a_file_has_the_fields_of_the_contract_and_no_others(explained, tmp_path):
    trace, matrix, content = explained
    lp.write_tokenlens(tmp_path / "a.json", content)
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, SCHEMA)
    metadata, data = document["metadata"], document["data"]
    assert datetime.fromisoformat(metadata["timestamp"]).tzinfo is not None
    assert metadata["llm_id"] == "storyworld" and metadata["attribution_method"] == "occlusion"
    assert metadata["prompt"] == "Once upon a time" and metadata["generation_params"] == {"max_new_tokens": 4, "temperature": 0.0}
    assert [token["token_id"] for token in data["input_tokens"] + data["output_tokens"]] == trace.tokens.tolist()
    assert [token["clean_token"] for token in data["output_tokens"]] == trace.token_texts[5:]
    assert data["input_tokens"][2]["token"] == trace.model.tokenizer.convert_ids_to_tokens([int(trace.tokens[2])])[0]
    np.testing.assert_array_equal(np.float32(data["association_matrix"]), matrix.attribution.values[:, :5])


def test_the_normalised_matrix_is_each_rows_share_of_its_largest_magnitude(explained):
    data = to_tokenlens(explained[2])["data"]
    scores, normalized = np.array(data["association_matrix"]), np.array(data["normalized_association"])
    for row, share in zip(scores, normalized):
        assert share.max() == 1 and share.min() >= 0
        np.testing.assert_allclose(share * np.abs(row).max(), np.abs(row))


def test_a_row_of_zeros_stays_zeros(explained):
    content = explained[2]
    content = type(content)(**{**vars(content), "scores": np.zeros_like(content.scores)})
    assert not np.any(to_tokenlens(content)["data"]["normalized_association"])


def test_there_and_back(explained, tmp_path):
    content = explained[2]
    lp.write_tokenlens(tmp_path / "a.json", content)
    back = lp.read_tokenlens(tmp_path / "a.json")
    for name in ("pieces", "token_ids", "texts", "start", "model", "version", "prompt", "method", "generation", "timestamp"):
        assert getattr(back, name) == getattr(content, name), name
    np.testing.assert_array_equal(back.scores[:, :5], content.scores[:, :5])
    assert np.isnan(back.scores[:, 5:]).all()  # what the format does not hold is unknown, not zero
    assert to_tokenlens(back) == to_tokenlens(content)


def test_what_the_first_readers_wrote_is_read_too():
    """The seed's README names fewer fields than the contract: no version, no llm_version."""
    token = {"token": "Ġa", "token_id": 1, "clean_token": "a"}
    document = {
        "metadata": {"timestamp": "2025-01-01T00:00:00", "llm_id": "gpt2", "prompt": " a", "attribution_method": "saliency", "generation_params": {}},
        "data": {"input_tokens": [token], "output_tokens": [token, token], "association_matrix": [[0.5], [1]], "normalized_association": [[1], [1]]},
    }
    read = from_tokenlens(document)
    assert read.texts == ("a", "a", "a") and read.scores[:, 0].tolist() == [0.5, 1.0]
    assert read.to_dataset().attrs["signed"] == 0


def test_a_file_that_was_read_can_be_drawn(explained, tmp_path):
    lp.write_tokenlens(tmp_path / "a.json", explained[2])
    dataset = lp.read_tokenlens(tmp_path / "a.json").to_dataset()
    assert dataset.attribution.dims == ("generated", "source") and dataset.source_token.values[4] == " time"
    assert lp.visualize(lp.read_tokenlens(tmp_path / "a.json")) is not None


CHANGES = {
    "no data": (lambda d: d.pop("data"), "metadata"),
    "metadata a list": (lambda d: d.update(metadata=[]), "metadata"),
    "tokens missing": (lambda d: d["data"].pop("input_tokens"), "input_tokens"),
    "tokens a text": (lambda d: d["data"].update(output_tokens="abc"), "output_tokens"),
    "a token without text": (lambda d: d["data"]["input_tokens"][1].pop("token"), r"input_tokens\[1\]"),
    "an id as text": (lambda d: d["data"]["input_tokens"][1].update(token_id="x"), r"input_tokens\[1\]"),
    "a row too few": (lambda d: d["data"]["association_matrix"].pop(), "4 rows"),
    "a column too few": (lambda d: d["data"]["association_matrix"][2].pop(), "5 numbers"),
    "a text in the matrix": (lambda d: d["data"]["association_matrix"][2].__setitem__(0, "1"), "no number"),
    "NaN in the matrix": (lambda d: d["data"]["association_matrix"][2].__setitem__(0, float("nan")), "NaN"),
    "a number too large": (lambda d: d["data"]["association_matrix"][2].__setitem__(0, 1e300), "too large"),
    "an integer too large": (lambda d: d["data"]["association_matrix"][2].__setitem__(0, 10**400), "too large"),
    "parameters a list": (lambda d: d["metadata"].update(generation_params=[1]), "generation_params"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_damage_is_named(explained, change, tmp_path):
    document = copy.deepcopy(to_tokenlens(explained[2]))
    damage, said = CHANGES[change]
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=said) as raised:
        lp.read_tokenlens(path)
    assert "damaged.json" in str(raised.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short(explained, share, tmp_path):
    lp.write_tokenlens(tmp_path / "whole.json", explained[2])
    data = (tmp_path / "whole.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(data[: int(share * len(data))])
    with pytest.raises(FormatError, match=r"cut\.json.*no valid JSON"):
        lp.read_tokenlens(tmp_path / "cut.json")


def test_only_a_matrix_of_this_trace_is_written(explained, storyworld, tmp_path):
    trace, matrix, content = explained
    with pytest.raises(FormatError, match="token_scores"):
        lp.attributions(trace, lp.token_scores(trace))
    with pytest.raises(FormatError, match="other tokens"):
        lp.attributions(lp.run_trace(storyworld, "Once upon a time there was a girl"), matrix)
    scores = content.scores.copy()
    scores[1, 2] = np.inf
    with pytest.raises(FormatError, match="output 1 and input 2"):
        lp.write_tokenlens(tmp_path / "a.json", type(content)(**{**vars(content), "scores": scores}))
    assert not list(tmp_path.iterdir())
