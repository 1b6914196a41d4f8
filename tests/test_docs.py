"""What README and docs say is so: their Python runs, their commands exist with these options, their links lead somewhere, and the error
messages, names, keys and variables that they list are the code's own."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import lensplorer as lp
from lensplorer.analyses.base import REGISTRY
from lensplorer.cli import app
from lensplorer.config import parse_config
from lensplorer.dashboard.actions import COMMANDS
from lensplorer.dashboard.options import parse_options

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
#: Programs that are not ours: that they are named is all that can be checked here.
OTHERS = {"ssh", "ray", "hf", "export", "source"}


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", text, re.M | re.S)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, language, body in found if language in languages]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every shell block, and of every `lensplorer …`, `make …` and `python -m …` within a sentence."""
    found = []
    for name, text in TEXTS.items():
        for block in blocks(text, "bash", "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(name, line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
        inline = re.findall(r"`((?:lensplorer|make|python -m|panel serve) [^`]*)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
        found += [(name, line) for line in inline if "…" not in line]
    return list(dict.fromkeys(found))


def words_of(command: str) -> list[str]:
    """A command's words, without a comment and without variables set for it alone."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda each: each)
def test_a_command_is_one(page, command, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = words_of(command)
    if program == "lensplorer":
        group = typer.main.get_command(app)
        name, *options = arguments or ["--help"]
        if name.startswith("-"):
            return
        assert name in group.commands, f"{page}: there is no {name!r}"
        if options != ["--help"]:
            group.commands[name].make_context(name, options + _needed(name, options))
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments) <= set(targets), f"{page}: no target {arguments}"
    elif program == "panel":
        assert arguments[:1] == ["serve"] and (ROOT / arguments[1]).is_file()
        parse_options(arguments[3:])
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in arguments:
            assert set(re.findall(r"\[(\w+)\]", word)) <= set(extras)
    elif program == "python":
        assert arguments[0] in ("-m", "-c") or (ROOT / arguments[0]).is_file()
        assert arguments[:2] != ["-m", "pytest"] or all((ROOT / word).exists() for word in arguments[2:])
    elif program == "curl":
        url = next(word for word in arguments if word.startswith("http"))
        body = json.loads(arguments[arguments.index("-d") + 1])
        assert url.rpartition("/")[2] in REGISTRY and "prompt" in body
    else:
        assert program in OTHERS, f"{page}: {command}"


def _needed(name: str, options: list[str]) -> list[str]:
    """What a command named in a sentence leaves out: a batch's input and folder."""
    if name != "batch":
        return []
    with_input = [] if options and not options[0].startswith("-") else ["prompts.jsonl"]
    return with_input + ([] if "--out" in options else ["--out", "results"])


def test_cheap_commands_run(tmp_path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Once upon a time"}\n{"prompt": "The capital of France is"}\n', encoding="utf-8")
    asked = "lensplorer batch prompts.jsonl --analysis token_scores --analysis logit_lens --set logit_lens.top_k=3 --out results"
    assert asked in TEXTS["batch.md"]
    environment = {**os.environ, "LENSPLORER_MODEL": "storyworld", "PYTHONWARNINGS": "ignore"}
    for command in (asked, "lensplorer models"):
        line = [sys.executable, "-m", "lensplorer.cli", *command.split()[1:]]
        result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "results" / "token_scores").is_dir()


@pytest.fixture
def registry():
    """What a page's code registers is taken out again."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_python_runs(page, registry, tmp_path, monkeypatch, storyworld) -> None:
    """All blocks of a page, one after another, in an empty folder; the built-in model stands in for those of the hub, and the server is asked
    without a socket."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n', encoding="utf-8")
    code = blocks(TEXTS[page], "python")
    scope: dict[str, object] = {"__name__": page}
    if any("httpx.post" in block for block in code):
        import httpx
        from fastapi.testclient import TestClient

        from lensplorer.server import ServerSettings
        from lensplorer.server.app import create_app

        served = create_app(ServerSettings(model="storyworld"), model=storyworld)
        client = TestClient(served, base_url="http://127.0.0.1:8000")
        monkeypatch.setattr(httpx, "post", client.post)
    for block in code:
        exec(compile(block.replace('"gpt2"', '"storyworld"'), page, "exec"), scope)
    if page == "CONTRIBUTING.md":
        trace = lp.run_trace(storyworld, "Once upon a time")
        assert scope["final_norms"](trace).norm.shape == (5,)


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if blocks(text, "toml")])
def test_toml_is_read(page) -> None:
    for block in blocks(TEXTS[page], "toml"):
        content = tomllib.loads(block)
        if "batch" not in content:
            parse_config(content)


def anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


def links() -> list[tuple[str, str]]:
    found = [(str(path.relative_to(ROOT)), link) for name, path in PAGES.items() for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name])]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                found += [(str(path.relative_to(ROOT)), link) for link in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"]))]
    return found


@pytest.mark.parametrize(("page", "link"), links())
def test_a_link_leads_somewhere(page, link) -> None:
    if link.startswith("https://"):
        return
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists(), f"{page}: {link}"
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_readme_links_every_guide_and_notebook() -> None:
    linked = {link for page, link in links() if page == "README.md"}
    wanted = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} | {
        f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert wanted <= linked


def said_by_the_code() -> list[str]:
    """Every text in the code; what it fills in is …"""
    found = []
    for path in (ROOT / "lensplorer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_the_code() -> None:
    said = "\n".join(said_by_the_code())
    rows = re.findall(r"^\| (`.*?) \| ", TEXTS["troubleshooting.md"], re.M)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 40
    wrong = [part for message in messages for part in message.split("…") if len(part.strip(" .:")) > 3 and part.strip() not in said]
    assert not wrong


def test_the_contract_lists_the_public_names_and_keys() -> None:
    page = TEXTS["contract.md"]
    table = page[page.index("| subject | names |") : page.index("- The subject is positional")]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(lp.__all__)
    results = page[page.index("| analysis | (dimensions)") : page.index("## Command line")]
    assert set(re.findall(r"`(\w+)`", results)) >= {name for name in lp.__all__ if name in REGISTRY}
    keys = page[page.index("## Keys") : page.index("## HTTP and files")]
    signs = {"ArrowUp": "↑", "ArrowDown": "↓", "ArrowLeft": "←", "ArrowRight": "→", " ": "space"}
    missing = [key for command in COMMANDS for key in command.keys if not key.isdecimal() and signs.get(key, key) not in keys]
    assert not missing


def test_methods_name_public_functions() -> None:
    heads = re.findall(r"^## .* · (.*)$", TEXTS["methods.md"], re.M)
    named = {name for head in heads for name in re.findall(r"`(\w+)`", head)}
    assert {name for name in lp.__all__ if name in REGISTRY} <= named | {"confirm_patching", "verify_by_ablation"}
    assert named <= set(lp.__all__)


def test_variables_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "lensplorer").rglob("*.py"))
    named = set(re.findall(r"LENSPLORER_\w+", "\n".join(TEXTS.values())))
    assert named <= set(re.findall(r"LENSPLORER_\w+", code))
    assert named == set(re.findall(r"`(LENSPLORER_\w+)`", TEXTS["configuration.md"]))


def test_the_picture_of_the_layout_is_whole() -> None:
    picture = TEXTS["CONTRIBUTING.md"]
    files = {path.name for path in (ROOT / "lensplorer").glob("*.py")}
    folders = {f"{path.name}/" for path in (ROOT / "lensplorer").iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^[├└]── ([\w./]+)", picture, re.M)) == files | folders
