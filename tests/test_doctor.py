"""``lensplorer doctor`` finds what works and what does not, without a traceback."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch
from typer.testing import CliRunner

from lensplorer import doctor
from lensplorer.cli import app
from lensplorer.errors import ModelError

runner = CliRunner()
SELF_TEST = ["self-test, model", "self-test, trace", "self-test, decomposition", "self-test, logit lens", "self-test, session", "self-test"]


def checks(found):
    return {check.name: check for check in found}


def test_all_is_well_here():
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    lines = {line[2:].split(":")[0]: line for line in result.output.splitlines()}
    for name in ("lensplorer", "torch", "transformer-lens", "cpu", "Hugging Face cache", "feature cache", "sae-lens", "pyarrow", *SELF_TEST):
        assert lines[name].startswith("✓"), name
    assert importlib.metadata.version("torch") in lines["torch"]


def test_what_is_optional_and_missing_names_what_installs_it(monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("ray", "captum") else version(name))
    found = checks(doctor._optional())
    for name, extra in (("ray", "ray"), ("captum", "attribution")):
        assert not found[name].failed and f'pip install "lensplorer[{extra}]"' in found[name].said and "without it" in found[name].said
    assert found["sae-lens"].status == "ok"


def test_what_is_needed_and_missing_is_a_failure_and_an_exit_code(monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "xarray" else version(name))
    monkeypatch.setattr(doctor, "self_test", lambda: iter(()))
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1 and "✗ xarray: is not installed" in result.output and "Traceback" not in result.output


def test_a_model_that_cannot_be_loaded(monkeypatch):
    def load():
        raise ModelError("'storyworld' is not there")

    found = list(doctor.self_test(load))
    assert [check.name for check in found] == SELF_TEST[:1] and found[0].failed and "not there" in found[0].said


@pytest.mark.parametrize(("broken", "name"), [("W_O", "self-test, decomposition"), ("W_U", "self-test, logit lens")])
def test_a_library_that_computes_something_else_is_found(storyworld, monkeypatch, broken, name):
    """As if the weights that analyses see were not those that the model runs with."""
    from lensplorer.analyses import lenses, residual

    target = {"W_O": (residual, "residual_decomposition"), "W_U": (lenses, "logit_lens")}[broken]
    right = getattr(*target)

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        if "completeness" in result.attrs:
            result.attrs["completeness"] = 0.5
        if "kl_to_final" in result:
            result["kl_to_final"] = result["kl_to_final"] + 0.5
        return result

    import lensplorer

    monkeypatch.setattr(lensplorer, target[1], wrong, raising=False)
    found = checks(doctor.self_test(lambda: storyworld))
    assert found[name].failed and "expected below" in found[name].said
    assert not found["self-test, session"].failed


def test_an_error_in_a_check_is_a_failed_check(monkeypatch):
    def broken():
        raise RuntimeError("CUDA driver initialization failed\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = checks(doctor._guarded("devices", doctor._devices))
    assert found["devices"].failed and found["devices"].said == "RuntimeError: CUDA driver initialization failed"


def test_the_size_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    (tmp_path / "two").write_bytes(b"x" * 500)
    (tmp_path / "link").symlink_to(tmp_path)
    size, files, whole = doctor.folder_size(tmp_path)
    assert (size, files, whole) == (1500, 2, True)  # a link to a folder is not followed
    assert doctor.folder_size(tmp_path, most=1)[1:] == (1, False)
