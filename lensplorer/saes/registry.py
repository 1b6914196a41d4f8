"""sae-lens' registry of published SAEs, searchable: release, id, model, hook, width, L0, and whether it fits a model.

The registry states release, id, model, path, and often L0; hook and width it leaves to each file's configuration. They are read out of the
names here, by the rules of each family of releases, and left empty where the names do not tell: loading is what decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lensplorer.arguments import expects
from lensplorer.errors import LensplorerError, SAEError, did_you_mean, first_line, nearest
from lensplorer.saes.info import sae_lens
from lensplorer.storyworld import DATA

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from lensplorer.models import LensModel

#: Releases that come with lensplorer: name → folder with one SAE per subfolder.
BUILT_IN: dict[str, Path] = {"storyworld": DATA / "saes"}

_EXPLICIT_HOOK = re.compile(r"blocks\.\d+\.(?:attn\.|mlp\.|ln[12]\.)?hook_[a-z]+(?:_[a-z]+)*")
_LAYER = re.compile(r"(?:layers?[_.]?|^l)(\d+)", re.IGNORECASE)
_WIDTH_WORD = re.compile(r"(?:^|[^a-z0-9])(?:width[_-]|w|l\d+[ram]-)?(\d+(?:\.\d+)?)([km])(?![a-z0-9])", re.IGNORECASE)
_WIDTH_POWER = re.compile(r"2pow(\d+)")
_WIDTH_DIGITS = re.compile(r"(?:_|_ds)(\d{3,6})(?:_|:|$)")
_SITES = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}


def built_in_ids(release: str) -> list[str]:
    """The ids of a release that comes with lensplorer; empty for any other."""
    folder = BUILT_IN.get(release)
    if folder is None or not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / "cfg.json").is_file())


@contextmanager
def _registry_errors() -> Iterator[None]:
    """What a registry that is damaged, or of another version of sae-lens, makes of those who read it."""
    try:
        yield
    except LensplorerError:
        raise
    except Exception as error:  # it is a file like any other
        raise SAEError(
            f"The registry of sae-lens cannot be read ({type(error).__name__}: {first_line(error)}): install sae-lens again."
            " An SAE in a folder or file needs no registry."
        ) from error


def directory() -> dict[str, Any]:
    """sae-lens' own registry: release → its lookup table.

    Raises:
        SAEError: sae-lens is not installed, or its registry cannot be read.
    """
    sae_lens()
    with _registry_errors():
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        return dict(get_pretrained_saes_directory())


def releases() -> list[str]:
    """Every release name, those that come with lensplorer first.

    >>> "gpt2-small-res-jb" in releases()
    True
    """
    return [*BUILT_IN, *directory()]


def sae_ids(release: str) -> list[str]:
    """The ids of a release.

    Raises:
        SAEError: there is no such release; the message names the nearest.
    """
    if release in BUILT_IN:
        return built_in_ids(release)
    known = directory()
    if release not in known:
        raise SAEError(f"There is no SAE release {release!r}.{_suggestion(release, known)} `lensplorer saes` lists all.")
    return list(known[release].saes_map)


def check_id(release: str, sae_id: str) -> None:
    """Refuse an id that its release does not have.

    Raises:
        SAEError: unknown release (with the nearest names) or id (with the release's ids).
    """
    ids = sae_ids(release)
    if sae_id in ids:
        return
    if not ids:
        raise SAEError(f"The release {release!r} has no SAEs in this installation.")
    listed = ", ".join(map(repr, ids[:12])) + (f", … ({len(ids)} in all)" if len(ids) > 12 else "")
    close = nearest(sae_id, ids)
    raise SAEError(
        f"The release {release!r} has no SAE {sae_id!r}."
        + (f" Did you mean {' or '.join(map(repr, close))}?" if close else "")
        + f" It has {listed}."
    )


def _suggestion(release: str, known: Any) -> str:
    containing = [name for name in known if release.lower() in name.lower()]
    return f" Did you mean {' or '.join(map(repr, containing[:3]))}?" if release and containing else did_you_mean(release, [*BUILT_IN, *known])


@expects
def search_saes(text: str = "", *, model: LensModel | None = None) -> pd.DataFrame:
    """The published SAEs whose release, id, model or repository holds every word of ``text``.

    >>> found = search_saes("gpt2-small res-jb blocks.8.hook_resid_pre")
    >>> found.iloc[0].release, found.iloc[0].sae_id, int(found.iloc[0].layer)
    ('gpt2-small-res-jb', 'blocks.8.hook_resid_pre', 8)

    Args:
        text: words, in any order and case. Empty: all of them.
        model: adds the column ``fits``: "yes" when the SAE is of this model and its hook exists here, "no", or "unknown" when the registry
            does not say enough. The audit when it is used is what decides.

    Returns:
        One row per SAE: release, sae_id, model, hook and layer ("" and <NA> where the names do not tell), width (number of features, <NA>
        likewise), l0 (active features per token, <NA> where not stated), neuronpedia_id, repo_id; the built-in ones first. No rows when
        nothing matches.

    Raises:
        SAEError: sae-lens is not installed.

    Cost: the registry is read once (a second or two); a search takes milliseconds.
    """
    table = _table()
    haystack = _haystack()
    keep = [all(word in row for word in text.lower().split()) for row in haystack]
    found = table[keep].reset_index(drop=True)
    if model is not None:
        found = found.assign(fits=_fits(found, model))
    return found


def _fits(found: pd.DataFrame, model: LensModel) -> list[str]:
    from lensplorer.models import model_info
    from lensplorer.running import hook_names
    from lensplorer.saes.audit import same_model

    name, hooks = model_info(model).name, hook_names(model)
    same = {other: same_model(other, name) for other in found.model.unique()}
    n_layers = int(model.cfg.n_layers)
    answers = []
    for of_model, hook, layer in zip(found.model, found.hook, found.layer, strict=True):
        if not same[of_model] or (not _is_missing(layer) and int(layer) >= n_layers):
            answers.append("no")
        elif not hook:
            answers.append("unknown")
        else:
            answers.append("yes" if hook in hooks or hook.endswith(("mlp.hook_in", "hook_mlp_in")) else "no")
    return answers


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


@lru_cache(maxsize=1)
def _haystack() -> list[str]:
    table = _table()
    return [" ".join(row).lower() for row in zip(table.release, table.sae_id, table.model, table.repo_id, table.hook, strict=True)]


@lru_cache(maxsize=1)
def _table() -> pd.DataFrame:
    import pandas as pd

    rows = [_built_in_row(release, sae_id, folder / sae_id) for release, folder in BUILT_IN.items() for sae_id in built_in_ids(release)]
    with _registry_errors():
        rows += [_row(release, lookup, sae_id, path) for release, lookup in directory().items() for sae_id, path in lookup.saes_map.items()]
    table = pd.DataFrame(rows)
    return table.astype({"layer": "Int64", "width": "Int64", "l0": "Float64"})


def _row(release: str, lookup: Any, sae_id: str, path: str) -> dict[str, Any]:
    hook = hook_of(lookup, sae_id, path)
    return {
        "release": release,
        "sae_id": sae_id,
        "model": lookup.model,
        "hook": hook,
        "layer": _layer_of(hook, sae_id),
        "width": width_of(release, sae_id, path, str(lookup.neuronpedia_id.get(sae_id) or "")),
        "l0": lookup.expected_l0.get(sae_id) or None,
        "neuronpedia_id": lookup.neuronpedia_id.get(sae_id) or "",
        "repo_id": lookup.repo_id,
    }


def _built_in_row(release: str, sae_id: str, folder: Path) -> dict[str, Any]:
    import json

    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    metadata = config.get("metadata", {})
    hook = metadata.get("hook_name") or ""
    return {
        "release": release,
        "sae_id": sae_id,
        "model": metadata.get("model_name") or release,
        "hook": hook,
        "layer": _layer_of(hook, sae_id),
        "width": config.get("d_sae"),
        "l0": metadata.get("k"),
        "neuronpedia_id": "",
        "repo_id": "built in",
    }


def hook_of(lookup: Any, sae_id: str, path: str) -> str:
    """The TransformerLens hook that a registered SAE reads, as far as its names tell; else ``""``."""
    explicit = _EXPLICIT_HOOK.search(sae_id) or _EXPLICIT_HOOK.search(path)
    if explicit:
        return re.sub(r"(blocks\.\d+)\.hook_z", r"\1.attn.hook_z", explicit.group())
    found = _LAYER.search(sae_id) or _LAYER.search(path)
    if found is None:
        return "hook_embed" if sae_id.startswith("embedding") else ""
    block = f"blocks.{found.group(1)}"
    family = lookup.conversion_func
    if family == "mwhanna_transcoder":
        return f"{block}.mlp.hook_in"
    if family == "gemma_2_transcoder":
        return f"{block}.ln2.hook_normalized"
    if family == "gemma_2":
        site = lookup.repo_id.rsplit("-", 1)[-1]
        return f"{block}.{_SITES[site]}" if site in _SITES else ""
    if family == "gemma_3":
        for word, hook in (
            ("transcoder", "hook_mlp_in"),
            ("clt", "hook_mlp_in"),
            ("resid_post", "hook_resid_post"),
            ("attn_out", "attn.hook_z"),
            ("mlp_out", "hook_mlp_out"),
        ):
            if path.startswith(word):
                return f"{block}.{hook}"
    if family in ("llama_scope", "llama_scope_r1_distill"):
        letter = re.search(r"l\d+([ram])(?:_|$)", sae_id)
        sites = {"r": "hook_resid_post", "a": "hook_attn_out", "m": "hook_mlp_out"}
        return f"{block}.{sites[letter.group(1)]}" if letter else ""
    if family in ("qwen_scope", "goodfire") or "resid_post" in path:
        return f"{block}.hook_resid_post"
    return ""


def _layer_of(hook: str, sae_id: str) -> int | None:
    found = re.search(r"blocks\.(\d+)\.", hook) or _LAYER.search(sae_id)
    return int(found.group(1)) if found else None


def width_of(release: str, sae_id: str, path: str, neuronpedia_id: str) -> int | None:
    """Number of features as far as the names tell: ``width_16k`` is 16,384, ``2pow14`` likewise, ``_24576`` as it stands."""
    for text in (sae_id, path, neuronpedia_id.split("/")[-1], release):
        power = _WIDTH_POWER.search(text)
        if power:
            return 2 ** int(power.group(1))
        word = _WIDTH_WORD.search(text)
        if word:
            thousands = float(word.group(1)) * (1000 if word.group(2).lower() == "m" else 1)
            return _power_of_two_near(thousands * 1000)
        digits = _WIDTH_DIGITS.search(text)
        if digits:
            return int(digits.group(1))
    return None


def _power_of_two_near(width: float) -> int:
    """Widths are written in rounded thousands: 16k is 2^14, 131k is 2^17, 1m is 2^20; one that is no power of two (24k) is 1,024 × k."""
    power = 2 ** round(math.log2(width))
    return power if abs(power - width) / width < 0.05 else round(width / 1000) * 1024
