"""Files of the Hugging Face hub and its cache, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensplorer.errors import SAEError, first_line


@contextmanager
def hub_errors(name: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn what the hub's client raises into an ``SAEError`` about the SAE called ``name``."""
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
        raise SAEError(f"{name!r} is gated: accept its licence on its hub page, then log in with `hf auth login` (or set HF_TOKEN).") from error
    except RevisionNotFoundError as error:
        raise SAEError(f"{name!r} has no revision {revision!r} on the hub.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SAEError(f"There is no repository for {name!r} on the hub. A private one needs `hf auth login`.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise SAEError(
            f"{name!r} is not in the local Hugging Face cache and the hub cannot be reached. The 'storyworld' SAEs need no network."
        ) from error
    except EntryNotFoundError as error:
        raise SAEError(f"{name!r} does not exist in its repository.") from error
    except HfHubHTTPError as error:
        raise SAEError(f"The hub does not give {name!r}: {first_line(error)}") from error


def fetch(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """The local path of a file of the hub.

    Raises:
        SAEError: there is none, or the hub cannot be reached and it is not in the cache.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{repo_id}/{filename}", revision=revision):
        return Path(hf_hub_download(repo_id, filename, revision=revision))


def fetch_if_there(repo_id: str, filename: str, revision: str | None = None) -> Path | None:
    """As ``fetch``, but None where the repository has no such file (or, offline, the cache has none)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        with hub_errors(f"{repo_id}/{filename}", revision=revision):
            return Path(hf_hub_download(repo_id, filename, revision=revision))
    except SAEError as error:
        if isinstance(error.__cause__, (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return None
        raise
