"""Names become folders; what is no model says what it is."""

from __future__ import annotations

import pytest

from lensplorer import storyworld
from lensplorer.catalogue import default_model_name, find_model, known_models
from lensplorer.errors import ModelError


def test_built_in_models_are_found():
    for name in storyworld.MODEL_NAMES:
        files = find_model(name)
        assert files.kind == "built-in" and (files.path / "config.json").is_file()
        assert name in known_models()


def test_the_environment_names_the_default(monkeypatch):
    monkeypatch.delenv("LENSPLORER_MODEL", raising=False)
    assert default_model_name() == "storyworld"
    monkeypatch.setenv("LENSPLORER_MODEL", "gpt2")
    assert default_model_name() == "gpt2"


def test_a_folder_without_config_is_no_model_and_nothing_is_said_of_its_files(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelError, match=r"has no config\.json") as refused:
        find_model(str(tmp_path))
    assert "notes" not in str(refused.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="There is no folder"):
        find_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name, near", [("storyword", "storyworld"), ("EleutherAI/pythia-70", "EleutherAI/pythia-70m"), ("gtp2", "gpt2")])
def test_an_unknown_name_offers_the_nearest(name, near):
    with pytest.raises(ModelError, match=f"Did you mean.*'{near}'"):
        find_model(name)


@pytest.mark.parametrize("name", ["", "a b", "x\0y", "org/model/extra"])
def test_names_that_cannot_be_are_refused(name):
    with pytest.raises(ModelError):
        find_model(name)
