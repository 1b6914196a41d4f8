"""Features are kept in memory and on disk, within bounds, under keys that cannot be mistaken, whatever happens to the files."""

from __future__ import annotations

import logging
import multiprocessing
import os

import numpy as np
import pytest
import torch

from lensplorer.analyses.features import feature_activations
from lensplorer.saes import FeatureCache, sae_reads
from lensplorer.saes.cache import cache_key, sae_digest
from lensplorer.saes.codes import Codes, sparse_codes
from lensplorer.trace import run_trace
from tests.saes import tiny_saes

PROMPT = "the cat sat on the mat"


def codes(n=4, fill=1.0):
    per_position = 5
    start = np.arange(n + 1, dtype=np.int64) * per_position
    return Codes(start, np.arange(n * per_position, dtype=np.int32), np.full(n * per_position, fill, np.float32), np.zeros(n, np.float32))


def never():
    raise AssertionError("computed again")


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("start", "feature", "activation", "squared_error"))


def test_memory_then_disk_then_computed(tmp_path):
    first = FeatureCache(tmp_path)
    made = first.get("key", codes)
    assert first.get("key", never) is made
    fresh = FeatureCache(tmp_path)
    assert same(fresh.get("key", never), made)
    computed = []
    fresh.get("other", lambda: computed.append(1) or codes())
    assert computed == [1]
    fresh.clear()
    with pytest.raises(AssertionError, match="computed again"):
        fresh.get("key", never)


def test_each_store_can_be_switched_off(tmp_path):
    memory = FeatureCache(tmp_path / "a", disk_bytes=0)
    memory.get("key", codes)
    memory.get("key", never)
    assert not (tmp_path / "a").exists()
    disk = FeatureCache(tmp_path / "b", memory_bytes=0)
    assert disk.get("key", codes) is not disk.get("key", never)


def test_memory_is_bounded_in_bytes_and_drops_the_oldest_used(tmp_path):
    cache = FeatureCache(tmp_path, memory_bytes=3 * codes().nbytes, disk_bytes=0)
    for key in "abc":
        cache.get(key, codes)
    cache.get("a", never)
    cache.get("d", codes)
    cache.get("a", never), cache.get("c", never), cache.get("d", never)
    with pytest.raises(AssertionError):
        cache.get("b", never)
    assert cache.get("huge", lambda: codes(1000)).n_positions == 1000
    cache.get("a", never)


def test_disk_is_bounded_in_bytes_and_drops_the_oldest_used(tmp_path):
    size = None
    cache = FeatureCache(tmp_path, memory_bytes=0, disk_bytes=10**9)
    for number in range(8):
        cache.get(f"key {number}", codes)
        path = cache._path(f"key {number}")
        size = path.stat().st_size
        os.utime(path, (1000 + number, 1000 + number))
    cache.get("key 0", never)  # used again: now the newest
    cache.disk_bytes = 5 * size
    cache.get("key 8", codes)
    held = {number for number in range(9) if cache._path(f"key {number}").exists()}
    assert sum(path.stat().st_size for path in cache._files()) <= cache.disk_bytes
    assert {0, 8} <= held and not held & {1, 2, 3, 4}


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other"])
def test_a_corrupt_file_is_dropped_with_a_warning(damage, tmp_path, caplog):
    cache = FeatureCache(tmp_path, memory_bytes=0)
    cache.get("key", codes)
    path = cache._path("key")
    whole = path.read_bytes()
    if damage == "other":
        cache.get("another key", lambda: codes(fill=2.0))
        path.write_bytes(cache._path("another key").read_bytes())
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": os.urandom(len(whole))}[damage])
    with caplog.at_level(logging.WARNING):
        assert same(cache.get("key", codes), codes())
    assert "cannot be read" in caplog.text and str(path) in caplog.text
    caplog.clear()
    cache.get("key", never)
    assert not caplog.text, "written anew"


def test_arrays_that_do_not_belong_together_are_dropped(tmp_path, caplog):
    cache = FeatureCache(tmp_path, memory_bytes=0)
    broken = Codes(codes().start, codes().feature[:-1], codes().activation, codes().squared_error)
    cache._write("key", broken)
    with caplog.at_level(logging.WARNING):
        cache.get("key", codes)
    assert "do not fit" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "features")
    with caplog.at_level(logging.WARNING):
        cache.get("key", codes)
    assert "cannot be" in caplog.text
    cache.get("key", never)


def write_many(folder, seed, times):
    cache = FeatureCache(folder, memory_bytes=0, disk_bytes=60_000)
    for step in range(times):
        found = cache.get(f"key {step % 7}", lambda step=step: codes(20 + step % 7))
        assert found.n_positions == 20 + step % 7


def test_writers_at_once_never_meet_half_a_file(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(tmp_path, seed, 60)) for seed in range(3)]
    for worker in workers:
        worker.start()
    with caplog.at_level(logging.WARNING):
        write_many(tmp_path, 9, 60)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not caplog.text and not list(tmp_path.glob("*/.*.tmp"))


def test_a_kill_in_the_middle_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, memory_bytes=0)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.get("key", codes)
    monkeypatch.undo()
    [left] = tmp_path.glob("*/.*.tmp")
    assert not cache._files()
    FeatureCache(tmp_path, memory_bytes=0).get("other", codes)
    assert left.exists(), "it may belong to a process at work"
    os.utime(left, (1000, 1000))
    FeatureCache(tmp_path, memory_bytes=0).get("third", codes)
    assert not left.exists()


# -- keys ----------------------------------------------------------------------------------------------------------------------------


def key_of(trace, sae):
    hook = tiny_saes.RESIDUAL
    return cache_key(trace, sae, trace[hook], None)


def test_a_key_tells_apart_everything_that_matters(tiny_model):
    from lensplorer.interventions import ablate_head

    model = tiny_model("gpt2")
    trace, sae = run_trace(model, PROMPT, prepend_bos=True), tiny_saes.of(model)
    key = key_of(trace, sae)
    assert key == key_of(run_trace(model, PROMPT, prepend_bos=True), tiny_saes.of(model)), "the same again"
    others = {
        "tokens": key_of(run_trace(model, PROMPT + " and", prepend_bos=True), sae),
        "intervention": key_of(run_trace(model, PROMPT, prepend_bos=True, interventions=[ablate_head(0, 1)]), sae),
        "weights": key_of(trace, tiny_saes.of(model, seed=1)),
        "settings": key_of(trace, tiny_saes.of(model, apply_b_dec_to_input=False)),
        "model": key_of(run_trace(tiny_model("llama"), PROMPT, prepend_bos=True), sae),
        "dtype": key_of(run_trace(tiny_model("gpt2", dtype="float64"), PROMPT, prepend_bos=True), sae),
    }
    assert len({key, *others.values()}) == 1 + len(others)
    from dataclasses import replace

    renamed = replace(trace)
    own = model.lensplorer_info
    try:
        for field in ("name", "revision", "dtype", "processing"):
            model.lensplorer_info = replace(own, **{field: "another"})
            assert key_of(renamed, sae) != key, field
    finally:
        model.lensplorer_info = own


def test_a_weight_changed_in_place_changes_the_digest(tiny_model):
    sae = tiny_saes.of(tiny_model("gpt2"))
    before = sae_digest(sae)
    assert sae_digest(sae) == before
    with torch.no_grad():
        sae.b_enc.add_(0.1)
    assert sae_digest(sae) != before


def test_a_revisit_computes_nothing_and_answers_the_same(tiny_model, tmp_path, monkeypatch):
    model = tiny_model("gpt2")
    sae = tiny_saes.of(model)
    trace = run_trace(model, PROMPT, prepend_bos=True, reads=sae_reads(model, sae))
    cache = FeatureCache(tmp_path)
    first = feature_activations(trace, sae, cache=cache)
    monkeypatch.setattr("lensplorer.analyses.features.sparse_codes", lambda *args: never())
    assert feature_activations(trace, sae, cache=cache).identical(first)
    assert feature_activations(trace, sae, cache=FeatureCache(tmp_path)).identical(first)
    assert feature_activations(trace, sae, k=2, exclude=(), cache=cache).sizes["rank"] == 2, "any k and exclusion from one entry"


def test_codes_are_a_sparse_matrix(tiny_model):
    sae = tiny_saes.make("standard", None)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    x[2] = -100 * sae.W_enc.sum(1)  # nothing fires
    dense = sae.encode(x).numpy()
    sparse = sparse_codes(sae, x, x)
    assert np.array_equal(sparse.l0, (dense != 0).sum(1))
    assert all(np.array_equal(sparse.of(feature), dense[:, feature]) for feature in range(96))
    feature, activation = sparse.top(3)
    for position in range(6):
        order = np.argsort(-dense[position], kind="stable")[:3]
        assert [f for f in feature[position] if f >= 0] == [f for f in order if dense[position, f] > 0]
        assert np.array_equal(activation[position], np.where(feature[position] >= 0, dense[position, feature[position]], 0))
