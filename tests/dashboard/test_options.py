"""The one table of options, as the command line and ``panel serve --args`` read it."""

from __future__ import annotations

import pytest

from lensplorer.dashboard.options import Options, parse_options
from lensplorer.errors import LensplorerError


def test_nothing_given_is_the_defaults():
    assert parse_options([]) == Options()


def test_all_options(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Once upon\na time\n", encoding="utf-8")
    config = tmp_path / "config.toml"
    config.write_text('[model]\nname = "gpt2"\n[display]\ntokens_to_show = 7\n', encoding="utf-8")
    given = ["-i", str(prompt), "--config", str(config), "--bf16", "--seed", "3", "--layer_prob", "--cross_layer", "--sae-config", str(config)]
    options = parse_options(given)
    assert (options.prompt, options.model, options.dtype, options.seed) == ("Once upon\na time", "gpt2", "bfloat16", 3)
    assert options.config.display.tokens_to_show == 7
    assert options.layer_prob and options.cross_layer and options.sae_config is not None
    assert parse_options([*given, "--model", "storyworld"]).model == "storyworld"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle", "gpt2"], "--model"),
        (["--seed", "x"], "seed"),
        (["--input", "/nowhere/prompt.txt"], "/nowhere/prompt.txt"),
        (["--config", "/nowhere/config.toml"], "/nowhere/config.toml"),
        (["--sae-config", "/nowhere/sae.toml"], "/nowhere/sae.toml"),
        (["stray"], "stray"),
        (["--port", "70000"], "port"),
    ],
)
def test_a_bad_argument_is_one_clear_error(arguments, said):
    with pytest.raises(LensplorerError, match=said):
        parse_options(arguments)


def test_bad_files(tmp_path):
    empty, binary, config = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "config.toml"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    config.write_text("[display]\ntokens_to_shw = 3\n")
    for arguments, said in (["--input", empty], "empty"), (["--input", binary], "UTF-8"), (["--config", config], "tokens_to_show"):
        with pytest.raises(LensplorerError, match=said):
            parse_options(list(map(str, arguments)))
    with pytest.raises(LensplorerError):
        parse_options(["--input", str(tmp_path)])
