"""TokenLens JSON: what its programs accept is written, all that they write is read, and the rest is refused by the field's name."""

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
from tests.formats import tokenlens_rules as rules


def changed(content, **fields):
    return type(content)(**{**vars(content), **fields})


def test_what_is_written_is_what_its_programs_accept(explained, tmp_path):
    trace, matrix, content = explained
    lp.write_tokenlens(tmp_path / "a.json", content)
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    rules.assert_accepted(document)
    metadata, data = document["metadata"], document["data"]
    assert datetime.fromisoformat(metadata["timestamp"]).tzinfo is not None
    assert metadata["llm_id"] == "storyworld" and metadata["attribution_method"] == "occlusion"
    assert metadata["prompt"] == "Once upon a time" and metadata["generation_params"] == {"max_new_tokens": 4, "temperature": 0.0}
    assert [token["token_id"] for token in data["input_tokens"] + data["output_tokens"]] == trace.tokens.tolist()
    assert [token["clean_token"] for token in data["output_tokens"]] == [text.strip() for text in trace.token_texts[5:]]
    assert data["input_tokens"][2]["token"] == trace.model.tokenizer.convert_ids_to_tokens([int(trace.tokens[2])])[0]
    np.testing.assert_array_equal(np.float32(data["association_matrix"]), matrix.attribution.values)  # earlier outputs too
    assert np.abs(np.array(data["association_matrix"])[1:, 5]).min() > 0 and data["attribution_source"] == "combined"


def test_what_a_content_does_not_say_is_filled_in(explained):
    content = changed(explained[2], generation={}, timestamp="", version="", method="", model="")
    document = to_tokenlens(content)
    rules.assert_accepted(document)
    assert document["metadata"]["generation_params"] == {"max_new_tokens": 4}
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(document["metadata"]["timestamp"])).total_seconds()) < 60


def test_parameters_are_texts_and_numbers(explained):
    given = {"max_new_tokens": None, "top_p": 0.9, "seed": None, "stop": ["\n"], "beam": {"n": 2}, "do_sample": True, "limit": float("inf")}
    document = to_tokenlens(changed(explained[2], generation=given))
    rules.assert_accepted(document)
    assert document["metadata"]["generation_params"] == {
        "max_new_tokens": 4, "top_p": 0.9, "stop": '["\\n"]', "beam": '{"n": 2}', "do_sample": True, "limit": "Infinity"
    }  # fmt: skip
    json.dumps(document, allow_nan=False)


def test_the_normalised_matrix_is_each_rows_share_of_its_largest_magnitude(explained):
    data = to_tokenlens(explained[2])["data"]
    scores, normalized = np.array(data["association_matrix"]), np.array(data["normalized_association"])
    for row, share in zip(scores, normalized):
        assert share.max() == 1 and share.min() >= 0
        np.testing.assert_allclose(share * np.abs(row).max(), np.abs(row))


def test_a_row_of_zeros_stays_zeros(explained):
    content = changed(explained[2], scores=np.zeros_like(explained[2].scores))
    document = to_tokenlens(content)
    rules.assert_accepted(document)
    assert not np.any(document["data"]["normalized_association"])
    np.testing.assert_array_equal(from_tokenlens(document).scores, content.scores)  # zeros that are said to be zeros


def test_there_and_back(explained, tmp_path):
    content = explained[2]
    lp.write_tokenlens(tmp_path / "a.json", content)
    back = lp.read_tokenlens(tmp_path / "a.json")
    for name in ("pieces", "token_ids", "texts", "start", "model", "version", "prompt", "method", "generation", "timestamp"):
        assert getattr(back, name) == getattr(content, name), name
    np.testing.assert_array_equal(back.scores, content.scores)
    assert to_tokenlens(back) == to_tokenlens(content)


def test_what_outputs_owe_to_outputs_may_be_unknown_and_stays_so(explained):
    scores = explained[2].scores.copy()
    scores[:, 5:] = np.nan
    document = to_tokenlens(changed(explained[2], scores=scores))
    rules.assert_accepted(document)
    assert document["data"]["attribution_source"] == "source"
    np.testing.assert_array_equal(from_tokenlens(document).scores, scores)


# -- files as its programs write them: three inputs, four outputs --------------------------------------------------------------------------

WORDS = [("Rivers", 11), ("Ġrun", 12), ("Ġto", 13), ("Ġthe", 14), ("Ġsea", 15), ("Ċ", 16), ("Ġ", 17)]
TEXTS = ("Rivers", " run", " to", " the", " sea", "\n", " ")
SCORES = np.array([[4, 1, 2, 0, 0, 0, 0], [1, 3, 1, 5, 0, 0, 0], [2, 0, 1, 1, 6, 0, 0], [0, 1, 0, 2, 1, 7, 0]]) / 8


def theirs(*, version="1.0.0", columns="inputs + outputs", normalised=True, **data):
    """A file shaped as theirs, with content of our own. Their clean tokens have neither the drawn space nor blanks about them."""
    tokens = [{"token": piece, "token_id": token_id, "clean_token": piece.lstrip("Ġ").strip()} for piece, token_id in WORDS]
    rows = SCORES[:, : rules.width(columns, 3, 4)].tolist()
    metadata = {
        "timestamp": "2024-12-01T08:15:00Z",
        "llm_id": "somebody/some-model",
        "llm_version": "some-model",
        "prompt": "Rivers run to",
        "generation_params": {"max_new_tokens": 40, "top_p": 0.95, "repetition_penalty": 1.05},
        "version": version,
    }
    found = {
        "input_tokens": tokens[:3],
        "output_tokens": tokens[3:],
        "association_matrix": rows,
        "normalized_association": rows if normalised else None,
    }
    return {"metadata": metadata, "data": {**found, **data}}


@pytest.mark.parametrize("version", rules.VERSIONS)
@pytest.mark.parametrize("columns", rules.WIDTHS)
@pytest.mark.parametrize("normalised", [True, False])
def test_every_version_and_width_is_read(version, columns, normalised):
    document = theirs(version=version, columns=columns, normalised=normalised)
    jsonschema.validate(document, rules.PYTHON)
    read = from_tokenlens(document)
    assert read.start == 3 and read.texts == TEXTS and read.token_ids == tuple(token_id for _, token_id in WORDS)
    assert read.generation == document["metadata"]["generation_params"] and read.prompt == "Rivers run to"
    expected = np.where(np.arange(7) < 3 + np.arange(4)[:, None], SCORES, np.nan)
    if columns == "inputs":
        expected[:, 3:] = np.nan  # unknown, not zero
    np.testing.assert_array_equal(read.scores, np.float32(expected))
    written = to_tokenlens(read)
    rules.assert_accepted(written)
    np.testing.assert_array_equal(from_tokenlens(written).scores, read.scores)


def test_the_plain_form_of_its_readme_is_read():
    """No version and no llm_version; parameters may be empty."""
    document = theirs(columns="inputs")
    del document["metadata"]["version"], document["metadata"]["llm_version"], document["data"]["normalized_association"]
    document["metadata"].update(attribution_method="saliency", generation_params={})
    read = from_tokenlens(document)
    assert read.version == "" and read.method == "saliency" and read.generation == {}
    assert read.to_dataset().attrs["signed"] == 0
    np.testing.assert_array_equal(read.scores[:, :3], np.float32(SCORES[:, :3]))


def test_the_first_files_of_lensplorer_are_read(explained):
    """Version 1.0: columns of inputs alone, clean tokens with their blanks, no parameters."""
    document = to_tokenlens(explained[2])
    document["metadata"].update(version="1.0", generation_params={})
    del document["data"]["attribution_source"]
    for key, texts in (("input_tokens", explained[2].texts[:5]), ("output_tokens", explained[2].texts[5:])):
        for token, text in zip(document["data"][key], texts):
            token["clean_token"] = text
    for key in ("association_matrix", "normalized_association"):
        document["data"][key] = [row[:5] for row in document["data"][key]]
    read = from_tokenlens(document)
    assert read.texts == explained[2].texts
    np.testing.assert_array_equal(read.scores[:, :5], explained[2].scores[:, :5])
    assert np.isnan(read.scores[:, 5:]).all()


def test_padding_is_not_taken_for_zeros():
    """Its storage fills a matrix of inputs up with zeros."""
    rows = np.pad(SCORES[:, :3], ((0, 0), (0, 3))).tolist()
    assert np.isnan(from_tokenlens(theirs(association_matrix=rows)).scores[:, 3:]).all()
    said = from_tokenlens(theirs(association_matrix=rows, attribution_source="combined")).scores
    assert said[3, 3:6].tolist() == [0, 0, 0]


def packed(matrix):
    places = [(row, column) for row, column in np.argwhere(matrix)]
    return {
        "values": [float(matrix[place]) for place in places],
        "indices": [int(row) << 16 | int(column) for row, column in places],
        "shape": list(matrix.shape),
        "isCompressed": True,
    }


def test_matrices_that_its_page_packs_are_read():
    np.testing.assert_array_equal(
        from_tokenlens(theirs(association_matrix=packed(SCORES), normalized_association=packed(SCORES))).scores, from_tokenlens(theirs()).scores
    )


def of_inseq(inner, *, n_in=3, outputs=WORDS, padded=True, **data):
    """As its Inseq analyser stores Inseq's matrix: filled up below and to the right, its size before that in raw_dimensions."""
    tokens = [{"token": piece, "token_id": token_id, "clean_token": piece.lstrip("Ġ").strip()} for piece, token_id in outputs]
    n_rows, n_columns = max(len(inner), len(outputs)), max(inner.shape[1], n_in + len(outputs) - 1)
    rows = np.pad(inner, ((0, n_rows - len(inner)), (0, n_columns - inner.shape[1]))) if padded else inner
    document = theirs(version="1.1.0", association_matrix=rows.tolist(), output_tokens=tokens, raw_dimensions=list(inner.shape))
    document["data"].update(attribution_source="unknown", **data)
    return document


@pytest.mark.parametrize("padded", [True, False])
def test_a_decoder_of_its_inseq_analyser(padded):
    """Outputs are the whole text, and the matrix is [token][generated]; Inseq has NaN where a token comes later."""
    for later in (0, np.nan):
        inner = np.where(np.arange(7) < 3 + np.arange(4)[:, None], SCORES, later).T
        document = json.loads(json.dumps(of_inseq(inner, padded=padded)))
        read = from_tokenlens(document)
        assert read.start == 3 and read.texts == TEXTS
        np.testing.assert_array_equal(read.scores, from_tokenlens(theirs()).scores)


def test_an_encoder_of_its_inseq_analyser():
    """[input][generated], or turned for attention; Inseq leaves the first output out, which is the decoder's start."""
    for inner in (SCORES[1:, :3].T, np.eye(3, 4)):
        read = from_tokenlens(of_inseq(inner, outputs=WORDS[3:]))
        assert read.start == 7 - inner.shape[1] and len(read.pieces) == 7
        np.testing.assert_array_equal(read.scores[:, :3], np.float32(inner.T))
        assert np.isnan(read.scores[:, 3:]).all()
    turned = from_tokenlens(of_inseq(SCORES[:, :3], outputs=WORDS[3:]))
    np.testing.assert_array_equal(turned.scores[:, :3], np.float32(SCORES[:, :3]))


AMBIGUOUS = {
    "a later output in the standard form": (theirs(association_matrix=np.ones((4, 7)).tolist()), r"association_matrix\[0\]\[3\]"),
    "an output on itself": (theirs(association_matrix=np.eye(4, 7, 3).tolist()), r"association_matrix\[0\]\[3\]"),
    "a version of the future": (theirs(version="2.0.0"), r"metadata\.version is '2\.0\.0'"),
    "a version that is a number": (theirs(version=1.0), "metadata.version"),
    "target alone": (theirs(attribution_source="target"), "attribution_source is 'target'"),
    "inputs alone, with outputs": (theirs(attribution_source="source"), "attribution_source is 'source'"),
    "an unknown source": (theirs(attribution_source="both"), "attribution_source is 'both'"),
    "dimensions of another matrix": (of_inseq(np.ones((7, 3))), r"raw_dimensions \[7, 3\]"),
    "square dimensions": (of_inseq(np.ones((3, 3)), outputs=WORDS[3:6]), r"raw_dimensions \[3, 3\]"),
    "dimensions of a decoder whose outputs begin otherwise": (of_inseq(SCORES.T, outputs=WORDS[::-1]), "raw_dimensions"),
    "numbers outside the dimensions": (of_inseq(SCORES.T, raw_dimensions=[7, 3]), "outside of data.raw_dimensions"),
    "dimensions that are no numbers": (theirs(raw_dimensions=["4", 7]), "raw_dimensions"),
    "huge dimensions": (theirs(raw_dimensions=[10**9, 10**9]), "raw_dimensions"),
    "rows of different widths": (theirs(association_matrix=[*SCORES[:2].tolist(), *SCORES[2:, :6].tolist()]), "rows of 6 and 7"),
    "packed in another shape": (theirs(association_matrix={**packed(SCORES), "shape": [7, 4]}), "association_matrix.shape"),
    "packed outside its shape": (theirs(association_matrix={**packed(SCORES), "indices": [2**40] * 14}), "association_matrix"),
    "packed without values": (theirs(association_matrix={"shape": [4, 7]}), "indices"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_ambiguous_is_refused_by_its_field(case):
    document, said = AMBIGUOUS[case]
    with pytest.raises(FormatError, match=said):
        from_tokenlens(document)


def test_more_scores_than_are_read():
    token = {"token": "a", "token_id": 1, "clean_token": "a"}
    with pytest.raises(FormatError, match="more scores than are read"):
        from_tokenlens(theirs(input_tokens=[], output_tokens=[token] * 9000, association_matrix=[[]] * 9000))


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
    "a row too few": (lambda d: d["data"]["association_matrix"].pop(), "4 rows of 5 or 8 or 9"),
    "a column too few": (lambda d: d["data"]["association_matrix"][2].pop(), "rows of 8 and 9"),
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
    with pytest.raises(FormatError, match="output 1 and token 2"):
        lp.write_tokenlens(tmp_path / "a.json", changed(content, scores=scores))
    with pytest.raises(FormatError, match="ISO-8601"):
        lp.write_tokenlens(tmp_path / "a.json", changed(content, timestamp="yesterday"))
    assert not list(tmp_path.iterdir())
