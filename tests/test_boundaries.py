"""The rooms stay apart: what may import what, that importing is light, and where a model may run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lensplorer"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("panel", "holoviews", "sae_lens", "captum", "umap", "ray", "transformer_lens", "transformers")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """(module, names) of every import anywhere in a file."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


def tops(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_only_what_is_to_their_left(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room == "analyses":
        assert not tops(path) & {"panel", "holoviews", "param", "bokeh"}
        private = [
            (module, name) for module, names in imports(path) for name in names if module.startswith("lensplorer.analyses.") and name.startswith("_")
        ]
        assert not private, "an analysis uses another's private names"
    if room == "views":
        assert not tops(path) & {"torch", "transformer_lens", "panel"}
    if room not in ("dashboard", "server", "cli.py"):
        assert "panel" not in tops(path)
    if room not in ("dashboard", "server", "cli.py", "views"):
        assert not any(module.startswith("lensplorer.dashboard") for module, _ in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_running_runs_a_model(path):
    """backends.py proves a model on loading, replay.py looks once at what its blocks return, storyworld trains."""
    if name_of(path).startswith(("running.py", "replay.py", "backends.py", "storyworld/")):
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    runs = [ast.unparse(call) for call in calls if ast.unparse(call).split(".")[-1] in ("model", "run_with_cache", "run_with_hooks")]
    assert not runs


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle_and_no_print(path):
    assert not tops(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    assert not any(isinstance(call, ast.Attribute) and ast.unparse(call) == "torch.load" for call in calls)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_text_files_name_their_encoding(path):
    """Else it is the locale's, which may not be UTF-8."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) == "os.open":
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        binary = any(isinstance(each, ast.Constant) and isinstance(each.value, str) and "b" in each.value for each in node.args[-1:])
        if name in ("read_text", "write_text") or (name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and not binary):
            assert "encoding" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_importing_lensplorer_is_light():
    assert not loaded_after("import lensplorer") & {*HEAVY, "torch"}


def test_importing_the_analyses_loads_no_page_and_no_vendor():
    assert not loaded_after("import lensplorer as lp; lp.run_trace, lp.token_scores, lp.load_model") & set(HEAVY)


def test_every_public_name_exists():
    import lensplorer

    for name in lensplorer.__all__:
        assert getattr(lensplorer, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lensplorer.nonsense  # noqa: B018
