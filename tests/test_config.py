"""The seed's configuration is read as it is; what is unknown is refused."""

from __future__ import annotations

import json

import pytest

from lensplorer.config import Config, load_config
from lensplorer.errors import ConfigError

SEED = """
[model]
name = "Qwen/Qwen2.5-0.5B"  # Model to use
enable_sae = false          # Master switch for SAE features (set to true to enable)

[[sae]]
layer = 8
repo_id = "mntss/skip-transcoder-Llama-3.2-1B-131k-nobos"
filename = "layer_8.safetensors"
revision = "new-training"

[[sae]]
release = "gpt2-small-res-jb"
sae_id = "blocks.8.hook_resid_pre"

[prompt]
example_prompt = "Once upon a time, there was a"  # Default prompt
max_prompts = 9  # Maximum number of prompts to store

[display]
tokens_to_show = 30  # Number of tokens to display in the table
cache_size = 100  # Maximum number of cached token sequences
"""


def write(folder, text):
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_the_seeds_file_is_accepted(tmp_path):
    config = load_config(write(tmp_path, SEED))
    assert config.model.name == "Qwen/Qwen2.5-0.5B" and config.prompt.max_prompts == 9
    assert config.display.tokens_to_show == 30 and config.display.cache_size == 100
    assert [sae.layer for sae in config.sae] == [8, None] and config.sae[1].release == "gpt2-small-res-jb"


#: Each key that Token Explorer's code reads (willkurt/token-explorer b63a7db, phunterlau/token-explorer 5367a11), with a value of its type.
READ_BY_TOKEN_EXPLORER = {
    "model": {"name": "some/model", "enable_sae": True},
    "prompt": {"example_prompt": "It was", "max_prompts": 4},
    "display": {"tokens_to_show": 12, "cache_size": 7},
}
SAE_READ_BY_TOKEN_EXPLORER = {"layer": 3, "repo_id": "some/saes", "filename": "layer_3.safetensors", "revision": "new"}


def toml(tables):
    return "\n".join(f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) for name, table in tables.items())


def test_every_key_that_token_explorer_reads_is_read(tmp_path):
    config = load_config(write(tmp_path, toml({**READ_BY_TOKEN_EXPLORER, "[sae]": SAE_READ_BY_TOKEN_EXPLORER})))
    for section, table in READ_BY_TOKEN_EXPLORER.items():
        assert {key: getattr(getattr(config, section), key) for key in table} == table
    assert {key: getattr(config.sae[0], key) for key in SAE_READ_BY_TOKEN_EXPLORER} == SAE_READ_BY_TOKEN_EXPLORER


def test_the_first_token_explorer_writes_fewer(tmp_path):
    """No SAEs, no cache; what it leaves out has the values that the extended one falls back to, but for its switch of SAEs."""
    config = load_config(write(tmp_path, toml({**READ_BY_TOKEN_EXPLORER, "model": {"name": "some/model"}, "display": {"tokens_to_show": 12}})))
    assert config.display.cache_size == 100 and config.sae == () and config.model.enable_sae


def test_every_part_has_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[display]\ntoken_to_show = 3", r"unknown key 'token_to_show' in \[display\]. Did you mean 'tokens_to_show'"),
        ("[promt]\n", r"unknown section \[promt\]. Did you mean 'prompt'"),
        ("[display]\ntokens_to_show = 'many'", "must be int, got 'many'"),
        ("[display]\ntokens_to_show = true", "must be int, got True"),
        ("[prompt]\nmax_prompts = 0", "must be at least 1"),
        ("[prompt]\nmax_prompts = 1001", "must be at most 1000"),
        ("[model\n", "not valid TOML"),
        ("[sae]\nlayer = 3", r"\[\[sae\]\]"),
        ("[[sae]]\nlayer = 3", "needs release and sae_id, or repo_id and filename"),
        ("model = 3", "must be a table"),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "b.toml")
