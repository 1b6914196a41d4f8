"""Feature JSON of Neuronpedia and circuit-tracer becomes the labels of an SAE; what is damaged or of another SAE is refused."""

from __future__ import annotations

import gzip
import json

import jsonschema
import pytest

from lensplorer.errors import ConfigError, FormatError, SAEError
from lensplorer.saes import feature_labels, load_sae, load_sae_config
from lensplorer.saes.feature_files import FeatureNotes, read_feature_notes
from tests.saes import tiny_saes

TEXTS = {"type": "array", "items": {"type": "string"}}
NUMBERS = {"type": "array", "items": {"type": "number"}}


def fields(required, optional=None):
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


# Their formats, stated apart from our reader, as the programs themselves check or store them.
#: Neuronpedia's own schema of a graph's feature, and circuit-tracer's model of it, which wants more.
EXAMPLE = fields(
    {"tokens": TEXTS, "tokens_acts_list": NUMBERS}, {"train_token_ind": {"type": "integer"}, "is_repeated_datapoint": {"type": "boolean"}}
)
QUANTILES = {"type": "array", "items": fields({"quantile_name": {"type": "string"}, "examples": {"type": "array", "items": EXAMPLE}})}
GRAPH_FEATURE = fields({"index": {"type": "number"}, "examples_quantiles": QUANTILES}, {"top_logits": TEXTS, "bottom_logits": TEXTS})
CIRCUIT_TRACER = fields(
    {
        "transcoder_id": {"type": "string"},
        "index": {"type": "integer"},
        "examples_quantiles": QUANTILES,
        "top_logits": TEXTS,
        "bottom_logits": TEXTS,
        "quantile_values": NUMBERS,
        "histogram": NUMBERS,
        **{name: {"type": "number"} for name in ("act_min", "act_max", "activation_frequency")},
    }
)
#: Tables of Neuronpedia's database, a line of whose export is a row; its API adds activations and explanations to a feature.
ROW = {"modelId": {"type": "string"}, "layer": {"type": "string"}, "index": {"type": "string"}}
ACTIVATION = fields({"tokens": TEXTS, "values": NUMBERS, "maxValue": {"type": "number"}, "maxValueTokenIndex": {"type": "integer"}})
EXPLANATION = fields({"description": {"type": "string"}})
FEATURE = fields(
    {**ROW, "pos_str": TEXTS, "neg_str": TEXTS, "frac_nonzero": {"type": "number"}},
    {"activations": {"type": "array", "items": ACTIVATION}, "explanations": {"type": "array", "items": EXPLANATION}},
)

OF = {"modelId": "gpt2", "layer": "1-res-x"}


def activation(*pairs):
    tokens, values = zip(*pairs)
    return {"tokens": list(tokens), "values": list(values), "maxValue": max(values), "maxValueTokenIndex": values.index(max(values))}


def neuronpedia(index="7", **more):
    record = {
        **OF,
        "index": index,
        "pos_str": ["Ġboat", "▁harbour"],
        "neg_str": ["x"],
        "frac_nonzero": 0.004,
        "explanations": [{"description": "things that float"}, {"description": "a worse one"}],
        "activations": [activation(("The", 0), ("Ġold", 0), ("Ġship", 6.5), (",", 1)), activation(("a", 0), ("▁raft", 3))],
        **more,
    }
    jsonschema.validate(record, FEATURE)
    return record


def circuit_tracer(index=7, **more):
    examples = [
        {"tokens": ["caf", "\\xc3", "\\xa9", " on", " the", " quay"], "tokens_acts_list": [0, 0, 0, 0, 0, 4.5]},
        {"tokens": ["", "no"], "tokens_acts_list": [0, 0]},
    ]
    for example in examples:
        example |= {"train_token_ind": 0, "is_repeated_datapoint": False}
    record = {
        "transcoder_id": "transcoder-1",
        "index": index,
        "examples_quantiles": [{"quantile_name": "Top", "examples": examples}, {"quantile_name": "Bottom", "examples": []}],
        "top_logits": [" boat", " sail"],
        "bottom_logits": [],
        "act_min": 0.0,
        "act_max": 4.5,
        "quantile_values": [],
        "histogram": [],
        "activation_frequency": 0.01,
        **more,
    }
    jsonschema.validate(record, CIRCUIT_TRACER)
    jsonschema.validate(record, GRAPH_FEATURE)
    return record


def write(path, *records):
    lines = ".jsonl" in path.suffixes
    data = ("\n".join(map(json.dumps, records)) if lines else json.dumps(records[0] if len(records) == 1 else records)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["7.json", "7.json.gz", "batch-0.jsonl", "batch-0.jsonl.gz"])
def test_neuronpedias_feature(name, tmp_path):
    found = read_feature_notes(write(tmp_path / name, neuronpedia()))
    assert found.source == "gpt2/1-res-x"
    examples = [("The old« ship»,", 6.5), ("a« raft»", 3.0)]
    assert found.features == {7: FeatureNotes("things that float", (" boat", " harbour"), examples, 0.004)}


def test_circuit_tracers_features_in_a_folder(tmp_path):
    write(tmp_path / "7.json", circuit_tracer())
    write(tmp_path / "9.json", circuit_tracer(9, top_logits=[" sun"]))
    write(tmp_path / "notes.txt", {})
    found = read_feature_notes(tmp_path)
    assert found.source == "transcoder-1" and sorted(found.features) == [7, 9]
    assert found.features[7] == FeatureNotes("", (" boat", " sail"), [("café on the« quay»", 4.5)], 0.01)


def test_neuronpedias_export(tmp_path):
    """Features, explanations and activations in lines of files of their own, beside tables that are of no use here."""
    bare = {key: value for key, value in neuronpedia().items() if key not in ("explanations", "activations")}
    write(tmp_path / "model.jsonl", {"id": "gpt2"})
    write(tmp_path / "features" / "batch-0.jsonl.gz", bare, {**bare, "index": "8", "frac_nonzero": -1})
    write(tmp_path / "explanations" / "batch-0.jsonl.gz", {**OF, "index": "8", "description": " named "})
    rows = [{**OF, "index": "7", **activation((f"t{n}", n), ("end", 0))} for n in range(1, 21)]
    write(tmp_path / "activations" / "batch-0.jsonl.gz", *rows, rows[-1])
    features = read_feature_notes(tmp_path).features
    assert features[8].label == "named" and features[8].density is None and features[7].label == ""
    assert features[7].examples == [(f"«t{n}»end", float(n)) for n in range(20, 12, -1)]  # the strongest 8, each once


@pytest.mark.parametrize("of", [neuronpedia, circuit_tracer])
def test_they_are_an_saes_labels_and_the_rest_has_top_tokens(of, tiny_model, tmp_path):
    model = tiny_model("gpt2")
    folder = tiny_saes.save(tiny_saes.of(model), tmp_path / "sae")
    path = write(tmp_path / "7.json", of())
    sae = load_sae(folder=folder, labels=path)
    other, seven = feature_labels(model, sae, [3, 7])
    assert other == feature_labels(model, load_sae(folder=folder), [3])[0] and other.kind == "top tokens"
    assert (seven.feature, seven.kind, seven.text) == (7, "stored", "things that float" if of is neuronpedia else "␠boat ␠sail")
    assert seven.examples and seven.density and len(seven.promotes) == 2
    (tmp_path / "saes.toml").write_text(f"[[sae]]\nfolder = {str(folder)!r}\nlabels = {str(path)!r}\n")
    assert feature_labels(model, load_sae_config(tmp_path / "saes.toml")[0], [7]) == [seven]
    (tmp_path / "saes.toml").write_text(f"[[sae]]\nfolder = {str(folder)!r}\nlabels = 3\n")
    with pytest.raises(ConfigError, match="labels must be str"):
        load_sae_config(tmp_path / "saes.toml")


def test_labels_of_another_sae_are_refused(tiny_model, tmp_path):
    made = tiny_saes.of(tiny_model("gpt2"), metadata={"neuronpedia_id": "gpt2/2-res-x"})
    folder = tiny_saes.save(made, tmp_path / "sae")
    with pytest.raises(SAEError, match=r"of 'gpt2/1-res-x', and the SAE .* is 'gpt2/2-res-x' on Neuronpedia"):
        load_sae(folder=folder, labels=write(tmp_path / "7.json", neuronpedia()))
    with pytest.raises(SAEError, match=r"labels the feature 96, and the SAE .* has 96"):
        load_sae(folder=folder, labels=write(tmp_path / "96.json", circuit_tracer(96)))
    with pytest.raises(SAEError, match=r"cannot be read.*none\.json"):
        load_sae(folder=folder, labels=tmp_path / "none.json")


DAMAGE = {
    "no index": (neuronpedia(), {"index": None}, "index is 'None'"),
    "a negative index": (circuit_tracer(), {"index": -1}, "index is '-1'"),
    "an index that is no number": (neuronpedia(), {"index": "L5"}, "index is 'L5'"),
    "too few values": (neuronpedia(), {"activations": [{"tokens": ["a", "b"], "values": [1]}]}, "values does not fit tokens: expected 2 numbers"),
    "values that are none": (neuronpedia(), {"activations": [{"tokens": ["a"], "values": [float("nan")]}]}, "values does not fit"),
    "quantiles a text": (circuit_tracer(), {"examples_quantiles": "Top"}, "examples_quantiles is no list of objects"),
    "logits that are numbers": (circuit_tracer(), {"top_logits": [1, 2]}, "top_logits is no list of texts"),
    "a density above 1": (circuit_tracer(), {"activation_frequency": 40}, "activation_frequency is 40"),
    "an explanation without text": (neuronpedia(), {"explanations": [{}]}, "description"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case, tmp_path):
    record, change, said = DAMAGE[case]
    with pytest.raises(FormatError, match=said) as raised:
        read_feature_notes(write(tmp_path / "damaged.json", {**record, **change}))
    assert "damaged.json" in str(raised.value)


def test_what_is_no_file_of_features_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"line 2.*of 'gpt2/3-res-x', and a file before it of 'gpt2/1-res-x'"):
        read_feature_notes(write(tmp_path / "two.jsonl", neuronpedia(), neuronpedia(layer="3-res-x")))
    with pytest.raises(FormatError, match="expected pos_str"):
        read_feature_notes(write(tmp_path / "other.json", {"index": 3}))
    with pytest.raises(FormatError, match="expected an object"):
        read_feature_notes(write(tmp_path / "list.json", [3], [4]))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(neuronpedia()).encode())[:-20])
    with pytest.raises(FormatError, match="cannot be read"):
        read_feature_notes(tmp_path / "cut.jsonl.gz")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(FormatError, match=r"text\.json.*no valid JSON"):
        read_feature_notes(tmp_path / "text.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="holds no feature"):
        read_feature_notes(tmp_path / "empty")


def test_all_files_together_are_bounded(tmp_path):
    files = [write(tmp_path / f"{index}.json.gz", circuit_tracer(index)) for index in range(3)]
    size = len(gzip.decompress(files[0].read_bytes()))
    assert len(read_feature_notes(tmp_path, max_bytes=3 * size).features) == 3
    with pytest.raises(FormatError, match=r"2\.json\.gz.*the most that is read"):
        read_feature_notes(tmp_path, max_bytes=3 * size - 1)
