"""Files are whole or not there, and what is read is bounded."""

from __future__ import annotations

import gzip
import os
import stat

import pytest

from lensplorer.errors import FormatError
from lensplorer.formats.files import read_bytes, read_json, write_bytes, written_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and names(tmp_path) == ["a.bin"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask  # as any other file its owner makes


@pytest.mark.parametrize("error", [RuntimeError("the drawing failed"), KeyboardInterrupt()])
def test_what_fails_in_the_middle_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with pytest.raises(type(error)), written_atomically(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")

    with pytest.raises(FormatError, match=r"a\.bin.*[Nn]o space"), written_atomically(tmp_path / "a.bin") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 100_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["missing/a.bin", "file/a.bin", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    with pytest.raises(FormatError, match=r"cannot be written"):
        write_bytes(tmp_path / place, b"x")
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FormatError, match=r"[Pp]ermission"):
        write_bytes(tmp_path / "a.bin", b"x")


def test_reading_is_bounded(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"x" * 1000)
    assert len(read_bytes(path, max_bytes=1000)) == 1000
    with pytest.raises(FormatError, match="larger than"):
        read_bytes(path, max_bytes=999)
    write_bytes(path, gzip.compress(b"x" * 10_000_000))  # a small file that unpacks to a large one
    assert path.stat().st_size < 20_000
    with pytest.raises(FormatError, match="larger than"):
        read_bytes(path, max_bytes=100_000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no valid JSON"),
        (b'{"a": 1', "no valid JSON"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b"[" * 200_000, "no valid JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"\x1f\x8b broken", "cannot be unpacked"),
        (gzip.compress(b'{"a": 1}' * 100)[:-12], "cut short"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, said):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said) as raised:
        read_json(path, what="a test file")
    assert "a.json" in str(raised.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FormatError, match=r"nowhere\.json.*cannot be read"):
        read_json(tmp_path / "nowhere.json", what="a test file")
