"""Where a model's files are: built-in models, local folders, and the Hugging Face hub and its cache.

Everything ends in a local folder in Hugging Face format, so that one loader serves all three. A hub model is taken as a snapshot of one
revision (safetensors only), which also keeps a folder of the same name in the working directory from shadowing it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lensplorer import storyworld
from lensplorer.errors import ModelError, nearest

DEFAULT_MODEL = "storyworld"
MODEL_VARIABLE = "LENSPLORER_MODEL"  #: environment variable that names the default model

#: Top-level files of a snapshot: no subfolders (exports to other formats), no pickles, no second copy of the weights.
_SNAPSHOT_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_SNAPSHOT_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder, and how it was named.

    Attributes:
        name: what the user calls it, e.g. ``"gpt2"``, ``"storyworld"`` or ``"./my_model"``.
        path: the folder with config.json.
        kind: ``"built-in"``, ``"folder"`` or ``"hub"``.
        repo_id: the hub's own name, for ``"hub"``.
        revision: the commit of the snapshot, for ``"hub"``.
    """

    name: str
    path: Path
    kind: str
    repo_id: str | None = None
    revision: str | None = None


def default_model_name() -> str:
    """The model named by ``LENSPLORER_MODEL``, else the built-in one."""
    return os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL


def known_models() -> list[str]:
    """Names that ``load_model`` knows without asking the hub: the built-in models, then those TransformerLens lists."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    return [*storyworld.MODEL_NAMES, *OFFICIAL_MODEL_NAMES]


def find_model(name: str, *, revision: str | None = None) -> ModelFiles:
    """The folder that holds the model called ``name``, fetched from the hub when it is neither built in nor a folder.

    Raises:
        ModelError: no such model (with the nearest names), a folder without config.json, a gated model without log-in, no network.
    """
    if not name or "\0" in name:
        raise ModelError("A model needs a name: a built-in model ('storyworld'), a hub name ('gpt2') or a folder ('./my_model').")
    if name in storyworld.MODEL_NAMES:
        return ModelFiles(name, storyworld.model_path(name), "built-in")
    if _means_folder(name):
        return ModelFiles(name, _checked_folder(Path(name).expanduser()), "folder")
    return _from_hub(name, revision)


def _means_folder(name: str) -> bool:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        return True
    return (Path(name) / "config.json").is_file() and _official_name(name) is None


def _checked_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ModelError(f"There is no folder {str(path)!r}. Expected a folder in Hugging Face format, or a hub name such as 'gpt2'.")
    if not (path / "config.json").is_file():
        held = sorted(entry.name for entry in path.iterdir())[:6]
        raise ModelError(
            f"The folder {str(path)!r} has no config.json, so it is not a model in Hugging Face format."
            f" It holds {', '.join(held) if held else 'nothing'}. Save one there with model.save_pretrained(...)."
        )
    return path.resolve()


def _official_name(name: str) -> str | None:
    """The hub name behind one of TransformerLens' aliases (``"pythia-70m"`` → ``"EleutherAI/pythia-70m"``)."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    return make_model_alias_map().get(name.lower())


def _from_hub(name: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_id = _official_name(name) or name
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=_SNAPSHOT_PATTERNS, ignore_patterns=_SNAPSHOT_IGNORED)
    except GatedRepoError as error:
        raise ModelError(f"{repo_id!r} is gated: accept its licence on its hub page, then log in with `hf auth login` (or set HF_TOKEN).") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo_id!r} has no revision {revision!r} on the hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"There is no model {name!r} on the hub.{_suggestion(name)} A private model needs `hf auth login`.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name!r} is not in the local Hugging Face cache and the hub cannot be reached.{_suggestion(name)}"
            " The built-in 'storyworld' needs no network."
        ) from error
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ModelError(f"The hub repository {repo_id!r} has no config.json: it is not a model in Hugging Face format.{_suggestion(name)}")
    return ModelFiles(name, path, "hub", repo_id, path.name)


def _suggestion(name: str) -> str:
    known = [each for each in known_models() if each != name]
    close = nearest(name, known) or nearest(name.split("/")[-1], [each.split("/")[-1] for each in known])
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
