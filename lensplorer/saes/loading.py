"""Loading SAEs: by release and id, from a folder, from a raw file, or all that a configuration lists."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lensplorer.arguments import expects
from lensplorer.config import load_config
from lensplorer.errors import SAEError
from lensplorer.models import resolve_device, resolve_dtype
from lensplorer.saes.hub import fetch, hub_errors
from lensplorer.saes.info import describe, quiet_sae_lens, sae_info, sae_lens
from lensplorer.saes.labels import LABELS, stored_labels
from lensplorer.saes.raw import RawSource, load_raw
from lensplorer.saes.registry import BUILT_IN, check_id, directory


@expects
def load_sae(
    release: str | None = None,
    sae_id: str | None = None,
    *,
    folder: str | Path | None = None,
    repo_id: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    layer: int | None = None,
    hook: str | None = None,
    hook_out: str | None = None,
    architecture: str | None = None,
    k: int | None = None,
    model_name: str | None = None,
    labels: str | Path | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
) -> Any:
    """Load an SAE or transcoder: sae-lens' own object, checked against the model when it is used.

    >>> import lensplorer as lp
    >>> sae = lp.load_sae("storyworld", "resid_2")
    >>> lp.sae_info(sae).hook
    'blocks.2.hook_resid_pre'

    Args:
        release, sae_id: as in sae-lens' registry (``search_saes`` finds them), ``"storyworld"``, or a hub repository in sae-lens format and
            a folder of it.
        folder: a folder that sae-lens saved (cfg.json and sae_weights.safetensors).
        repo_id, filename: a raw file of the hub: .safetensors or .npz, of an SAE or of a circuit-tracer transcoder, skip connection
            included. ``filename`` alone is a local file.
        revision: branch, tag or commit of the repository.
        layer: block of a raw file whose name and metadata do not say it.
        hook, hook_out: what a raw file reads, and for a transcoder what it predicts, where nothing else says so; relative to ``layer`` or whole.
        architecture, k: a raw file's activation function, where nothing else says it: "standard" (ReLU), "topk" with ``k``, "transcoder".
        labels: what its features are about, by other programs: a file or folder of Neuronpedia's or circuit-tracer's feature JSON, or the folder of
            a Neuronpedia export. Features that it leaves out keep their top tokens.
        model_name: the model that this SAE is of, where it goes by another name here than in its metadata (a local copy).
        device, dtype: as ``load_model``; an SAE keeps float32 unless told otherwise, whatever the model's.

    Returns:
        A ``sae_lens.SAE`` or ``Transcoder`` in eval mode with frozen parameters; ``sae_info(sae)`` tells where it came from.

    Raises:
        SAEError: sae-lens is not installed; unknown release (with the nearest names) or id (with the release's ids); no network; a file
            with missing or misshapen tensors; a raw file of which nobody says the hook or the activation function; conflicting arguments; labels that
            cannot be read or are of another SAE.

    Cost: reads the weights once; the first call imports sae-lens, some seconds.
    """
    device = str(resolve_device(device))
    dtype = str(resolve_dtype(dtype)).removeprefix("torch.")
    ways = [name for name, given in (("release", release), ("folder", folder), ("filename", filename)) if given]
    if len(ways) != 1:
        said = " and ".join(ways) if ways else "none of them"
        raise SAEError(f"An SAE is named by release and sae_id, by folder, or by filename (with repo_id on the hub): got {said}.")
    if filename:
        source = RawSource(filename, repo_id, revision, layer, hook, hook_out, architecture, k, model_name)
        sae, source = load_raw(source, device=device, dtype=dtype)
        return _with_labels(_finished(sae, source.name, model_name, layer, revision=revision), labels)
    raw_only = [name for name, given in (("hook", hook), ("hook_out", hook_out), ("architecture", architecture), ("k", k)) if given]
    if raw_only:
        raise SAEError(f"{', '.join(raw_only)} describe a raw file; an SAE of a release or folder says it itself.")
    if folder:
        path = Path(folder).expanduser()
        return _with_labels(_finished(_from_folder(path, device, dtype), str(folder), model_name, layer, labels_path=_labels(path)), labels)
    assert release is not None
    if not sae_id:
        check_id(release, "")
    return _with_labels(_from_release(release, str(sae_id), revision, device, dtype, model_name, layer), labels)


@expects
def load_sae_config(path: str | Path, *, device: str = "cpu", dtype: str | torch.dtype = "float32") -> list[Any]:
    """Every SAE that a configuration file lists under ``[[sae]]``, in its order.

    >>> import tempfile
    >>> import lensplorer as lp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "saes.toml"
    ...     _ = path.write_text("[[sae]]\\nrelease = 'storyworld'\\nsae_id = 'resid_2'\\n", encoding="utf-8")
    ...     [lp.sae_info(sae).name for sae in lp.load_sae_config(path)]
    ['storyworld/resid_2']

    Args:
        path: a TOML file, such as those in ``sae_configs``.
        device, dtype: as ``load_sae``.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key.
        SAEError: it lists no SAE, or one of them cannot be loaded; the message says which.
    """
    config = load_config(path)
    if not config.sae:
        raise SAEError(f"{str(path)!r} lists no SAE: add a [[sae]] table with release and sae_id, or repo_id and filename.")
    loaded = []
    for table in config.sae:
        try:
            loaded.append(load_sae(**asdict(table), device=device, dtype=dtype))
        except SAEError as error:
            raise SAEError(f"{str(path)!r}, SAE {len(loaded) + 1} of {len(config.sae)}: {error}") from error
    return loaded


def _from_release(release: str, sae_id: str, revision: str | None, device: str, dtype: str, model_name: str | None, layer: int | None) -> Any:
    facts: dict[str, Any] = {"release": release, "sae_id": sae_id, "revision": revision}
    name = f"{release}/{sae_id}"
    if release in BUILT_IN:
        check_id(release, sae_id)
        path = BUILT_IN[release] / sae_id
        return _finished(_from_folder(path, device, dtype), name, model_name, layer, labels_path=_labels(path), **facts)
    package, known = sae_lens(), directory()
    if release in known or "/" not in release:
        check_id(release, sae_id)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    if revision is not None:
        options["converter"] = _at_revision(release, revision, name)
    with _as_sae_errors(name), hub_errors(name, revision=revision), quiet_sae_lens():
        sae = package.SAE.from_pretrained(release, sae_id, **options)
    if release in known:
        lookup = known[release]
        facts["expected_l0"] = float(lookup.expected_l0.get(sae_id) or 0) or None
        facts["neuronpedia_id"] = lookup.neuronpedia_id.get(sae_id) or sae.cfg.metadata.neuronpedia_id or None
        facts["reconstructs"] = lookup.conversion_func != "mntss_clt_layer_transcoder"
        if not sae.cfg.metadata.model_name:
            sae.cfg.metadata.model_name = lookup.model
    return _finished(sae, name, model_name, layer, **facts)


def _at_revision(release: str, revision: str, name: str) -> Any:
    """A sae-lens loader that reads at one revision, which its own does not."""
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name, sae_lens_disk_loader

    if get_conversion_loader_name(release) != "sae_lens":
        raise SAEError(f"{name!r} is not in sae-lens' own format, and its loader takes no revision: leave revision out, or load its raw file.")

    def load(repo_id: str, folder_name: str, device: str = "cpu", force_download: bool = False, cfg_overrides: Any = None) -> Any:
        config = fetch(repo_id, f"{folder_name}/cfg.json", revision)
        fetch(repo_id, f"{folder_name}/sae_weights.safetensors", revision)
        return (*sae_lens_disk_loader(config.parent, device, cfg_overrides), None)

    return load


def _from_folder(path: Path, device: str, dtype: str) -> Any:
    package = sae_lens()
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (path / name).is_file()]
    if missing:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) if path.is_dir() else ""
        raise SAEError(
            f"The folder {str(path)!r} has no {' and no '.join(missing)}, so it is not an SAE that sae-lens saved."
            + (f" It holds {held or 'nothing'}." if path.is_dir() else " There is no such folder.")
        )
    with _as_sae_errors(str(path)), quiet_sae_lens():
        return package.SAE.load_from_disk(path, device=device, dtype=dtype)


class _as_sae_errors:
    """What sae-lens and torch raise about a file's content, as an ``SAEError`` that names the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        from safetensors import SafetensorError

        if isinstance(error, (RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)):
            text = " ".join(str(error).split())[:400]
            raise SAEError(f"sae-lens cannot load {self.name!r}: {type(error).__name__}: {text}") from error
        if isinstance(error, OSError) and not hasattr(error, "response") and error.filename:
            raise SAEError(f"{self.name!r} cannot be read: {error}") from error


def _finished(sae: Any, name: str, model_name: str | None, layer: int | None, **facts: Any) -> Any:
    """Freeze, check the shapes and numbers, and keep what is known beside the SAE."""
    sae.eval()
    for parameter in sae.parameters():
        parameter.requires_grad_(False)
    if model_name is not None:
        sae.cfg.metadata.model_name = model_name
    info = describe(sae, name=name, **facts)
    expected = {"W_enc": (info.d_in, info.d_sae), "W_dec": (info.d_sae, info.d_out), "b_dec": (info.d_out,)}
    for key, shape in expected.items():
        found = getattr(sae, key, None)
        if found is not None and info.architecture != "temporal" and tuple(found.shape) != shape:
            raise SAEError(f"{key} of {name!r} is {list(found.shape)} and should be {list(shape)} by its configuration.")
    for key, parameter in sae.named_parameters():
        if not bool(parameter.sum(dtype=torch.float32).isfinite()):
            raise SAEError(f"{key} of {name!r} holds NaN or infinite numbers.")
    if layer is not None and info.layer is not None and layer != info.layer:
        raise SAEError(f"{name!r} reads {info.hook!r}, and layer={layer} was asked for.")
    sae.lensplorer_info = info
    return sae


def _with_labels(sae: Any, labels: str | Path | None) -> Any:
    if labels is not None:
        sae.lensplorer_info = replace(sae.lensplorer_info, labels_path=Path(labels).expanduser())
        if stored_labels(sae) is None:  # what is wrong with them is said now
            raise SAEError(f"The labels cannot be read: there is no file or folder {str(labels)!r}.")
    return sae


def _labels(folder: Path) -> Path | None:
    path = folder / LABELS
    return path if path.is_file() else None


__all__ = ["load_sae", "load_sae_config", "sae_info"]
