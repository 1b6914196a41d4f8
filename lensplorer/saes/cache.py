"""Features already computed, in memory and on disk.

Both stores are bounded in bytes and drop what was used longest ago. A key names the model, its revision, dtype and processing, the SAE by a
digest of its weights, the tokens, and a digest of the very activations that were encoded: an intervention, a retrained model under the same
name or an SAE edited in place can never meet another's features. Files are written whole under another name and then renamed, so that
neither a second process nor a kill in the middle leaves half a file under a name that is read; one that cannot be read is dropped.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.saes.codes import Codes
from lensplorer.saes.info import sae_info

if TYPE_CHECKING:
    from lensplorer.trace import Trace

logger = logging.getLogger(__name__)

MEMORY_BYTES = 256 * 2**20
DISK_BYTES = 2**30
_FORMAT = "lensplorer features 1"
_ABANDONED_SECONDS = 3600.0  # a temporary file this old belongs to a process that was killed
_SLACK = 0.9  # eviction goes on until this share of the bound is used, so as not to run at every write


class FeatureCache:
    """Features by key, in memory and (unless ``folder`` is None) in files.

    Args:
        folder: where the files are. Default: ``features`` in the user's cache directory.
        memory_bytes, disk_bytes: bounds; 0 switches that store off.
    """

    def __init__(self, folder: Path | str | None = None, *, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self._folder = Path(folder) if folder is not None else None
        self._held: OrderedDict[str, Codes] = OrderedDict()
        self._held_bytes = 0
        self._mutex = threading.Lock()
        self._on_disk: int | None = None  # bytes in the folder as last counted, plus what was written since

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        if self._folder is None:
            import platformdirs

            self._folder = Path(platformdirs.user_cache_dir("lensplorer")) / "features"
        return self._folder

    def get(self, key: str, compute: Callable[[], Codes]) -> Codes:
        """The features under ``key``: from memory, from disk, or computed and kept. Trouble with files is logged, never raised."""
        with self._mutex:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        codes = self._read(key) if self.disk_bytes else None
        if codes is None:
            codes = compute()
            if self.disk_bytes:
                self._write(key, codes)
        self._hold(key, codes)
        return codes

    def clear(self) -> None:
        """Forget everything, files included."""
        with self._mutex:
            self._held.clear()
            self._held_bytes = 0
        for path in self._files():
            _remove(path)
        self._on_disk = 0

    # -- memory --------------------------------------------------------------------------------------------------------------------

    def _hold(self, key: str, codes: Codes) -> None:
        if codes.nbytes > self.memory_bytes:
            return
        with self._mutex:
            old = self._held.pop(key, None)
            self._held_bytes += codes.nbytes - (old.nbytes if old is not None else 0)
            self._held[key] = codes
            while self._held_bytes > self.memory_bytes:
                _, dropped = self._held.popitem(last=False)
                self._held_bytes -= dropped.nbytes

    # -- disk ----------------------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*/*.safetensors")) if self.folder.is_dir() else []

    def _read(self, key: str) -> Codes | None:
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT or metadata.get("key") != key:
                raise ValueError("it holds something else than its name says")
            codes = Codes(**tensors)
            _check(codes)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            logger.warning("The cached features in %s cannot be read (%s) and are dropped.", path, error)
            _remove(path)
            return None
        return codes

    def _write(self, key: str, codes: Codes) -> None:
        from safetensors.numpy import save

        path = self._path(key)
        tensors = {name: np.ascontiguousarray(getattr(codes, name)) for name in ("start", "feature", "activation", "squared_error")}
        data = save(tensors, metadata={"format": _FORMAT, "key": key})
        if len(data) > self.disk_bytes:
            return
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            logger.warning("Features cannot be cached in %s: %s", path.parent, error)
            _remove(temporary)
            return
        self._on_disk = None if self._on_disk is None else self._on_disk + len(data)
        if self._on_disk is None or self._on_disk > self.disk_bytes:
            self._evict()

    def _evict(self) -> None:
        """Count the folder, and if it is over the bound remove what was used longest ago; also what killed processes left."""
        found = []
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                continue  # another process removed it
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        if total > self.disk_bytes:
            for _, size, path in sorted(found):
                if total <= _SLACK * self.disk_bytes:
                    break
                _remove(path)
                total -= size
        self._on_disk = total
        for path in self.folder.glob("*/.*.tmp"):
            try:
                abandoned = abs(time.time() - path.stat().st_mtime) > _ABANDONED_SECONDS  # the clock may have gone back
            except OSError:
                continue
            if abandoned:
                _remove(path)


_default: FeatureCache | None = None


def feature_cache() -> FeatureCache:
    """The cache that analyses use unless given another."""
    global _default
    if _default is None:
        _default = FeatureCache()
    return _default


def cache_key(trace: Trace, sae: Any, source: torch.Tensor, target: torch.Tensor | None) -> str:
    """What the features of one prompt depend on, as text; ``target`` where a transcoder predicts another activation than it reads."""
    info = trace.info
    digest = hashlib.sha256(trace.tokens.numpy().tobytes())
    digest.update(_bytes(source))
    if target is not None:
        digest.update(_bytes(target))
    parts = [info.name, info.revision or "", info.dtype, info.backend, info.processing, sae_info(sae).name, sae_digest(sae), digest.hexdigest()]
    return "\n".join(parts)


def sae_digest(sae: Any) -> str:
    """A digest of an SAE's weights and of the settings that its encoding depends on.

    Computed once per SAE, again when a weight was replaced or changed in place. Cost: about a second per GB.
    """
    parameters = [(name, parameter) for name, parameter in sae.named_parameters()]
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key not in ("device", "metadata")}
    version = (repr(settings), [(name, parameter.data_ptr(), parameter._version) for name, parameter in parameters])
    known = getattr(sae, "_lensplorer_digest", None)
    if known is not None and known[0] == version:
        return str(known[1])
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(_bytes(parameter))
    sae._lensplorer_digest = (version, digest.hexdigest())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _check(codes: Codes) -> None:
    """Refuse arrays that do not belong together: a file cut short or edited."""
    for array, kind in ((codes.start, "i"), (codes.feature, "i"), (codes.activation, "f"), (codes.squared_error, "f")):
        if array.ndim != 1 or array.dtype.kind != kind:
            raise ValueError(f"one of its arrays is {array.dtype}, of {array.ndim} dimensions")
    active = len(codes.feature)
    if len(codes.start) == 0 or codes.start[0] != 0 or codes.start[-1] != active or (np.diff(codes.start) < 0).any():
        raise ValueError("its positions do not fit its features")
    if len(codes.activation) != active or len(codes.squared_error) != codes.n_positions:
        raise ValueError("its arrays differ in length")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, error)
