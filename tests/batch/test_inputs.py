"""The same prompts from every kind of input, and what is refused."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from lensplorer.batch import inputs
from lensplorer.batch.inputs import Record, open_input
from lensplorer.errors import FormatError, PromptError

TEXTS = ["Once upon a time", 'a "quoted", comma', "naïve 日本 🙂", "  spaces kept  "]


def as_text(folder):
    path = folder / "a.txt"
    path.write_bytes("\r\n".join([TEXTS[0], "", *TEXTS[1:], "   "]).encode() + b"\n")  # blank lines do not count
    return path


def as_jsonl(folder):
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in TEXTS), encoding="utf-8")
    return path


def as_bare_jsonl(folder):
    path = folder / "b.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in TEXTS) + "\n", encoding="utf-8-sig")
    return path


def as_csv(folder):
    path = folder / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt"], *([text] for text in TEXTS)])
    return path


def as_parquet(folder):
    pa.parquet.write_table(pa.table({"prompt": TEXTS}), folder / "a.parquet")
    return folder / "a.parquet"


def as_saved_data_set(folder):
    """What ``datasets.Dataset.save_to_disk`` writes, by the library itself."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": TEXTS}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_saved_splits(folder):
    datasets = pytest.importorskip("datasets")
    splits = {"train": datasets.Dataset.from_dict({"prompt": TEXTS}), "test": datasets.Dataset.from_dict({"prompt": ["other"]})}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_repository(folder):
    (folder / "repository" / "data").mkdir(parents=True)
    for at, piece in enumerate((TEXTS[:2], TEXTS[2:])):
        pa.parquet.write_table(pa.table({"prompt": piece}), folder / "repository" / "data" / f"train-{at:05d}-of-00002.parquet")
    pa.parquet.write_table(pa.table({"prompt": ["other"]}), folder / "repository" / "data" / "test-00000-of-00001.parquet")
    return folder / "repository"


KINDS = [as_text, as_jsonl, as_bare_jsonl, as_csv, as_parquet, as_saved_data_set, as_saved_splits, as_repository]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_gives_the_same_prompts(tmp_path, make):
    split = "train" if make in (as_saved_splits, as_repository) else None
    found = open_input(make(tmp_path), split=split)
    records = list(found.records())
    assert [record.prompt(None) for record in records] == TEXTS and [record.index for record in records] == [0, 1, 2, 3]
    assert found.count == 4 and found.columns == ("prompt",)
    assert found.digest == open_input(as_jsonl(tmp_path)).digest  # the digest is of the content, not of the file
    assert [Record.from_json(record.to_json()) for record in records] == records


def test_another_prompt_changes_the_digest(tmp_path):
    path = as_jsonl(tmp_path)
    before = open_input(path).digest
    path.write_text(path.read_text().replace("Once", "Twice"))
    assert open_input(path).digest != before


def test_columns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "question": "two"}\n{"question": [1, 2]}\n')
    first, second = open_input(path, column="question").records()
    assert first.prompt(None) == "one" and first.prompt("question") == "two" and second.prompt("question") == [1, 2]
    with pytest.raises(PromptError, match=r"Row 1 has no prompt.*'text'.*\['question'\]"):
        second.prompt(None)
    with pytest.raises(FormatError, match=r"no column 'queston'.*'question'"):
        open_input(path, column="queston")


BAD = {
    "empty.txt": (b"\n \n", "no prompts"),
    "bytes.txt": (b"\xff\xfeabc", "not UTF-8"),
    "cut.jsonl": (b'{"prompt": "a"}\n{"prompt": "b', "Line 2 .* no valid JSON"),
    "deep.jsonl": (b"[" * 200_000, "Line 1 .* no valid JSON"),
    "number.jsonl": (b"17\n", "Line 1 .* int"),
    "quotes.csv": (b'prompt\n"a\n', "no valid CSV"),
    "nul.csv": (b"prompt\na\0b\n", "NUL"),
    "columns.csv": (b"prompt,id\na,1,2\n", "Line 2 .* columns"),
    "fewer.csv": (b"prompt,id\na\n", "Line 2 .* columns"),
    "header.csv": (b"prompt\n", "no prompts"),
    "broken.parquet": (b"PAR1 nothing PAR1", "no Parquet"),
    "broken.arrow": (b"nothing", "no Arrow"),
    "weights.bin": (b"x", "unknown kind"),
    "prompts.jsnl": (b"x", r"unknown kind.*'\.jsonl'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(tmp_path, name):
    data, said = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=said) as raised:
        open_input(tmp_path / name)
    assert name in str(raised.value)


def test_a_line_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_LINE", 100)
    (tmp_path / "a.txt").write_text("short\n" + "x" * 101)
    with pytest.raises(FormatError, match=r"Line 2 .* longer"):
        open_input(tmp_path / "a.txt")


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(FormatError, match="no input"):
        open_input(tmp_path / "nowhere.txt")
    with pytest.raises(FormatError, match="holds no data set"):
        open_input(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(FormatError, match="damaged"):
        open_input(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(FormatError, match="no valid JSON"):
        open_input(tmp_path)


def test_splits_are_named(tmp_path):
    path = as_saved_splits(tmp_path)
    with pytest.raises(FormatError, match=r"'train', 'test'.*--split"):
        open_input(path)
    with pytest.raises(FormatError, match=r"no split 'tset'.*'test'"):
        open_input(path, split="tset")
    with pytest.raises(FormatError, match="no splits"):
        open_input(as_text(tmp_path), split="train")
    with pytest.raises(FormatError, match="of the split 'valid'"):
        open_input(as_repository(tmp_path), split="valid")
