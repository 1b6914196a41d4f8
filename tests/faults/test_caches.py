"""Caches, registries and configurations that are cut short, of another version or gone: set aside, made again, or said; never fatal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

import lensplorer as lp
from lensplorer.config import load_config
from lensplorer.errors import ConfigError, LensplorerError, SAEError
from lensplorer.saes import FeatureCache, registry
from lensplorer.saes.codes import Codes

# -- features ------------------------------------------------------------------------------------------------------------------------


def codes() -> Codes:
    """Two features at each of three positions."""
    return Codes(np.array([0, 2, 4, 6]), np.arange(6, dtype=np.int32), np.ones(6, np.float32), np.zeros(3, np.float32))


def rewritten(**changes: Any) -> Any:
    """The file with some arrays replaced, as another version might have written them."""

    def change(path: Path) -> None:
        key = {"format": "lensplorer features 1", "key": "key"} | changes.pop("metadata", {})
        save_file({**load_file(path), **changes}, path, metadata=key)

    return change


DAMAGE: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "binary": lambda path: path.write_bytes(b"\xff" * 100),
    "nothing in it": lambda path: path.write_bytes(save({})),
    "another version": rewritten(metadata={"format": "lensplorer features 99"}),
    "another key": rewritten(metadata={"key": "other"}),
    "an array more": rewritten(more=np.zeros(3, np.float32)),
    "positions as numbers": rewritten(start=np.array([0.0, 2.0, 4.0, 6.0])),
    "positions in a square": rewritten(start=np.array([[0, 2], [4, 6]])),
    "positions that go back": rewritten(start=np.array([0, 4, 2, 6])),
    "fewer activations": rewritten(activation=np.ones(5, np.float32)),
    "features as numbers": rewritten(feature=np.ones(6, np.float32)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_features_is_made_again(damage, tmp_path):
    FeatureCache(tmp_path).get("key", codes)
    path = next(tmp_path.glob("*/*.safetensors"))
    DAMAGE[damage](path)
    made = []
    for _ in range(2):
        found = FeatureCache(tmp_path).get("key", lambda: made.append(1) or codes())
        assert np.array_equal(found.feature, codes().feature) and np.array_equal(found.start, codes().start)
    assert len(made) == (2 if damage == "a folder" else 1)  # what stands where the file should be is left alone
    FeatureCache(tmp_path).clear()


def test_where_nothing_can_be_kept_features_are_computed(tmp_path, storyworld):
    (tmp_path / "file").write_text("not a folder")
    sae = lp.load_sae("storyworld", "resid_2")
    trace = lp.run_trace(storyworld, "Once upon a time")
    found = lp.feature_activations(trace, sae, cache=FeatureCache(tmp_path / "file"))
    assert found.equals(lp.feature_activations(trace, sae, cache=FeatureCache(tmp_path / "kept")))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("ahead", [10**7, -(10**7)])
def test_a_clock_that_jumps_loses_nothing_and_keeps_the_bound(ahead, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, memory_bytes=0)
    cache.get("first", codes)
    size = next(tmp_path.glob("*/*.safetensors")).stat().st_size
    left = tmp_path / "ab" / ".killed.1.2.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x")
    for path in (left, *tmp_path.glob("*/*.safetensors")):
        os.utime(path, (time.time() + ahead, time.time() + ahead))
    assert FeatureCache(tmp_path).get("first", lambda: pytest.fail("computed again")).n_positions == 3
    bounded = FeatureCache(tmp_path, memory_bytes=0, disk_bytes=3 * size)
    for number in range(6):
        bounded.get(f"key {number}", codes)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors")) <= 3 * size
    assert not left.exists()  # older than any process that writes, by whatever clock


# -- the registry of published SAEs --------------------------------------------------------------------------------------------------


class Another:
    """A release as another version of sae-lens might describe it."""

    saes = ("a", "b")


def broken() -> Any:
    raise FileNotFoundError(2, "No such file", "pretrained_saes.yaml")


@pytest.mark.parametrize(
    "read", [broken, lambda: None, lambda: [], lambda: "text", lambda: 1 / 0, lambda: {"release": Another()}, lambda: {"release": None}]
)
def test_a_damaged_registry_is_said_and_the_built_in_saes_need_none(read, monkeypatch):
    from sae_lens.loading import pretrained_saes_directory

    lp.search_saes("gpt2")  # whatever is imported by it is
    monkeypatch.setattr(pretrained_saes_directory, "get_pretrained_saes_directory", read)
    registry._table.cache_clear()
    registry._haystack.cache_clear()
    try:
        for ask in (lambda: lp.search_saes("gpt2"), lambda: lp.load_sae("gpt2-small-res-jb", "blocks.8.hook_resid_pre")):
            try:
                found = ask()
            except SAEError as error:
                assert "registry" in str(error) or "There is no SAE release" in str(error)
            else:
                assert set(found.repo_id) <= {"built in"}
        assert lp.sae_info(lp.load_sae("storyworld", "resid_2")).layer == 2
    finally:
        monkeypatch.undo()
        registry._table.cache_clear()
        registry._haystack.cache_clear()
    assert len(lp.search_saes("gpt2")) > 10


# -- configurations ------------------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, bytes] = {
    "cut": b'[model]\nname = "gpt',
    "cut in a key": b"[mod",
    "binary": b"\xff\xfe\x00[model]",
    "NUL": b"[model]\nname = 'a\0b'",
    "deep": b"a = " + b"[" * 100_000,
    "deep tables": b"[" + b".".join([b"a"] * 5000) + b"]",
    "JSON": b'{"model": {"name": "gpt2"}}',
    "a list for a section": b"model = [1, 2]",
    "a number for a section": b"display = 3",
    "another version": b"[future]\nkey = 1",
    "a wrong type": b"[display]\ntokens_to_show = 'many'",
    "a truth value": b"[display]\ntokens_to_show = true",
    "a negative": b"[prompt]\nmax_prompts = -1",
    "a date": b"[model]\nname = 1979-05-27",
    "infinity": b"[display]\ncache_size = inf",
    "one SAE": b"[sae]\nrelease = 'storyworld'",
    "SAEs that are none": b"sae = [1, 2]",
    "an SAE without a name": b"[[sae]]\nlayer = 3",
    "nothing": b"",
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_damaged_configuration_is_a_sentence(what, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(CONFIGS[what])
    with pytest.raises(LensplorerError, match=r"config\.toml") as raised:
        lp.load_sae_config(path)
    assert "\n" not in str(raised.value)
    if what != "nothing":  # a configuration, though without SAEs
        with pytest.raises(ConfigError):
            load_config(path)


@pytest.mark.parametrize("path", ["nowhere.toml", ".", "a\0b.toml"])
def test_a_configuration_that_cannot_be_read_is_a_sentence(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read|not valid TOML"):
        lp.load_sae_config(path)
