"""Where a model's files are: built-in models, local folders, and the Hugging Face hub and its cache.

Everything ends in a local folder in Hugging Face format, or in one GGUF file, so that one loader serves all three. A hub model is taken as a
snapshot of one revision (safetensors only), which also keeps a folder of the same name in the working directory from shadowing it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lensplorer import storyworld
from lensplorer.errors import ModelError, nearest

DEFAULT_MODEL = "storyworld"
MODEL_VARIABLE = "LENSPLORER_MODEL"  #: environment variable that names the default model

#: Top-level files of a snapshot: no subfolders (exports to other formats), no pickles, no second copy of the weights.
_SNAPSHOT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_SNAPSHOT_IGNORED = ["*/*", "consolidated*"]
_HUB_FILE = re.compile(r"[^./~\\][^/\\]*/[^/\\]+/[^\\]+")  # owner/repository/file, the file in a folder or not


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder or file, and how it was named.

    Attributes:
        name: what the user calls it, e.g. ``"gpt2"``, ``"storyworld"``, ``"./my_model"`` or ``"./model.gguf"``.
        path: the folder with config.json, or with the GGUF file.
        kind: ``"built-in"``, ``"folder"``, ``"gguf"`` (a file here) or ``"hub"``.
        repo_id: the hub's own name, for ``"hub"``.
        revision: the commit of the snapshot, for ``"hub"``.
        gguf: the name of the GGUF file within ``path``; None for a model in Hugging Face format.
    """

    name: str
    path: Path
    kind: str
    repo_id: str | None = None
    revision: str | None = None
    gguf: str | None = None


def default_model_name() -> str:
    """The model named by ``LENSPLORER_MODEL``, else the built-in one."""
    return os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL


def known_models() -> list[str]:
    """Names that ``load_model`` knows without asking the hub: the built-in models, then those TransformerLens lists."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    return [*storyworld.MODEL_NAMES, *OFFICIAL_MODEL_NAMES]


def find_model(name: str, *, revision: str | None = None) -> ModelFiles:
    """Where the model called ``name`` is, fetched from the hub when it is neither built in nor here.

    A name that ends in ``.gguf`` is a file here, or else ``owner/repository/file.gguf`` on the hub. A folder without config.json and with
    one GGUF file stands for that file.

    Raises:
        ModelError: no such model (with the nearest names), no such file, a folder without a model or with several GGUF files, a gated model
            without log-in, no network.
    """
    if not name or "\0" in name:
        raise ModelError(
            "A model needs a name: a built-in model ('storyworld'), a hub name ('gpt2'), a folder ('./my_model') or a GGUF file ('./model.gguf')."
        )
    if name in storyworld.MODEL_NAMES:
        return ModelFiles(name, storyworld.model_path(name), "built-in")
    try:
        return _find(name, Path(name).expanduser(), revision)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a folder that may not be read, an unknown user's home
        raise ModelError(f"The model {name[:200]!r} cannot be looked up here: {getattr(error, 'strerror', None) or error}.") from error


def _find(name: str, path: Path, revision: str | None) -> ModelFiles:
    if is_gguf(name) and not path.is_dir():
        if path.is_file():
            return _gguf(name, path)
        if is_hub_file(name):
            return _file_from_hub(name, revision)
        raise ModelError(f"There is no file {str(path)!r}.{_other_files(path)} Expected a GGUF file, or owner/repository/file.gguf on the hub.")
    if _means_folder(name):
        return _checked_folder(name, path)
    return _from_hub(name, revision)


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file.

    >>> is_gguf("./model.gguf"), is_gguf("gpt2")
    (True, False)
    """
    return name.lower().endswith(".gguf")


def is_hub_file(name: str) -> bool:
    """Whether a name is that of a file on the hub: owner/repository/file.

    >>> is_hub_file("owner/repository/model.gguf"), is_hub_file("owner/repository"), is_hub_file("./models/model.gguf")
    (True, False, False)
    """
    return _HUB_FILE.fullmatch(name) is not None


def gguf_files(folder: Path) -> list[str]:
    """The GGUF files in a folder, by name; none if there is no such folder."""
    return sorted(entry.name for entry in folder.iterdir() if is_gguf(entry.name) and entry.is_file()) if folder.is_dir() else []


def holds_model(folder: Path) -> bool:
    """Whether a folder has a model in Hugging Face format or in a GGUF file, as far as it may be read."""
    try:
        return (folder / "config.json").is_file() or bool(gguf_files(folder))
    except OSError:
        return False


def _gguf(name: str, path: Path) -> ModelFiles:
    return ModelFiles(name, path.parent.resolve(), "gguf", gguf=path.name)


def _other_files(path: Path) -> str:
    held = gguf_files(path.parent)
    close = nearest(path.name, held) or held[:3]
    return f" {str(path.parent)!r} has {', '.join(map(repr, close))}." if close else ""


def _means_folder(name: str) -> bool:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        return True
    return holds_model(Path(name)) and _official_name(name) is None


def _checked_folder(name: str, path: Path) -> ModelFiles:
    if not path.is_dir():
        raise ModelError(f"There is no folder {str(path)!r}. Expected a folder in Hugging Face format, or a hub name such as 'gpt2'.")
    if (path / "config.json").is_file():
        return ModelFiles(name, path.resolve(), "folder")
    files = gguf_files(path)
    if len(files) == 1:
        return _gguf(name, path / files[0])
    if files:
        raise ModelError(
            f"The folder {str(path)!r} has {len(files)} GGUF files: {', '.join(files[:12])}. Name one, such as {str(path / files[0])!r}."
        )
    raise ModelError(
        f"The folder {str(path)!r} has no config.json, so it is not a model in Hugging Face format, and no GGUF file."
        " Save one there with model.save_pretrained(...)."
    )


def _official_name(name: str) -> str | None:
    """The hub name behind one of TransformerLens' aliases (``"pythia-70m"`` → ``"EleutherAI/pythia-70m"``)."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    return make_model_alias_map().get(name.lower())


def _from_hub(name: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import snapshot_download

    repo_id = _official_name(name) or name
    with _hub_errors(name, repo_id, revision):
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=_SNAPSHOT_PATTERNS, ignore_patterns=_SNAPSHOT_IGNORED)
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"The hub repository {repo_id!r} has no config.json: it is not a model in Hugging Face format.{_suggestion(name)}"
            f" A GGUF file in it is named {repo_id}/file.gguf."
        )
    return ModelFiles(name, path, "hub", repo_id, path.name)


def _file_from_hub(name: str, revision: str | None) -> ModelFiles:
    """One GGUF file of a repository, which may lie in a folder of it."""
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.split("/", 2)
    repo_id = f"{owner}/{repository}"
    with _hub_errors(name, repo_id, revision):
        path = Path(hf_hub_download(repo_id, file, revision=revision))
    snapshot = path.parents[file.count("/")]
    return ModelFiles(name, snapshot, "hub", repo_id, snapshot.name, gguf=file)


@contextmanager
def _hub_errors(name: str, repo_id: str, revision: str | None) -> Iterator[None]:
    """What goes wrong on the hub, as a ModelError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelError(f"{repo_id!r} is gated: accept its licence on its hub page, then log in with `hf auth login` (or set HF_TOKEN).") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo_id!r} has no revision {revision!r} on the hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"There is no model {name!r} on the hub.{_suggestion(name)} A private model needs `hf auth login`.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(_unreachable(name)) from error
    except EntryNotFoundError as error:
        raise ModelError(f"There is no file {name!r} on the hub: its repository {repo_id!r} has no such file.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(_unreachable(name)) from error


def _unreachable(name: str) -> str:
    return (
        f"{name!r} is not in the local Hugging Face cache and the hub cannot be reached.{_suggestion(name)}"
        " The built-in 'storyworld' needs no network."
    )


def _suggestion(name: str) -> str:
    known = [each for each in known_models() if each != name]
    close = nearest(name, known) or nearest(name.split("/")[-1], [each.split("/")[-1] for each in known])
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
