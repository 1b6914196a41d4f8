"""What works on this machine: versions, devices, caches, optional packages, and a self-test on the built-in model.

Nothing here raises: what fails is a check that failed, and says what to do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensplorer import __version__
from lensplorer.errors import LensplorerError, first_line

#: Packages that everything needs.
NEEDED = ("torch", "transformer-lens", "transformers", "xarray", "numpy", "holoviews", "bokeh", "panel", "panel-material-ui", "safetensors")

#: Distribution, the module it brings, the extra that installs it, and what is missing without it.
OPTIONAL = (
    ("sae-lens", "sae_lens", "sae", "SAE and transcoder features"),
    ("captum", "captum", "attribution", "attribution by SHAP, DeepLIFT and LIME"),
    ("umap-learn", "umap", "clusters", "the map of head clusters"),
    ("llguidance", "llguidance", "constraints", "sampling under a grammar, JSON schema or regular expression"),
    ("pyarrow", "pyarrow", "tables", "batches, and Parquet tables"),
    ("gguf", "gguf", "gguf", "models in GGUF files"),
    ("ray", "ray", "ray", "batches on several processes or machines"),
)

#: What a library may raise when it is broken on this machine: a missing module or shared library, a wrong version, no memory.
_FAILURES = (LensplorerError, ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: of it.
        status: ``"ok"``, ``"note"`` (worth knowing, nothing needed is missing) or ``"failed"``.
        said: what was found, and what to do.
    """

    name: str
    status: str
    said: str

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def line(self) -> str:
        return f"{ {'ok': '✓', 'note': '·', 'failed': '✗'}[self.status] } {self.name}: {self.said}"


def examine() -> Iterator[Check]:
    """Every check, one by one, as it is done.

    >>> next(examine()).name
    'lensplorer'

    Cost: the self-test loads the built-in model: about 10 s.
    """
    yield Check("lensplorer", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield from _versions()
    for name, look in (("devices", _devices), ("browser", _browser)):
        yield from _guarded(name, look)
    yield from _guarded("caches", _caches)
    yield from _optional()
    yield from self_test()


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of one kind; an error in them is a check that failed."""
    try:
        yield from look()
    except _FAILURES as error:
        yield Check(name, "failed", f"{type(error).__name__}: {first_line(error)}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    for name in NEEDED:
        version = _version(name)
        if version is None:
            yield Check(name, "failed", f"is not installed: pip install {name}, or reinstall lensplorer")
        else:
            yield Check(name, "ok", version)


def _devices() -> Iterator[Check]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    yield Check(
        "cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for PyTorch" + (f", {_size(memory)} memory" if memory else "")
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", "ok", f"{found.name}, {_size(found.total_memory)}")
    else:
        yield Check("cuda", "note", "none")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "there")


def _browser() -> Iterator[Check]:
    named = os.environ.get("LENSPLORER_BROWSER")
    found = named or next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
    has_playwright = importlib.util.find_spec("playwright") is not None
    if found and has_playwright:
        yield Check("figures", "ok", f"HTML, SVG and PNG, drawn by {found}")
    else:
        missing = " and ".join([*([] if has_playwright else ["playwright (pip install playwright)"]), *([] if found else ["a Chromium on the PATH"])])
        yield Check("figures", "note", f"HTML; SVG and PNG need {missing}")


def _caches() -> Iterator[Check]:
    import platformdirs
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {
        "Hugging Face cache": Path(HF_HUB_CACHE),
        "feature cache": Path(platformdirs.user_cache_dir("lensplorer")) / "features",
        "saved sessions": Path(platformdirs.user_data_dir("lensplorer")),
    }
    for name, folder in folders.items():
        if not folder.is_dir():
            yield Check(name, "ok", f"{folder}, not made yet")
            continue
        size, files, whole = folder_size(folder)
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        said = f"{folder}, {'' if whole else 'over '}{_size(size)} in {files:,} files, {_size(free)} free"
        yield Check(name, "ok" if writable else "note", said if writable else f"{said}; it cannot be written")


def folder_size(folder: Path, *, most: int = 100_000) -> tuple[int, int, bool]:
    """Bytes and files in a folder, links not followed, and whether all were counted: it stops at ``most`` files."""
    size = files = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if files == most:
                return size, files, False
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # another process removed it
                continue
            files += 1
    return size, files, True


def _optional() -> Iterator[Check]:
    for distribution, module, extra, what in OPTIONAL:
        version = _version(distribution)
        if version is not None and importlib.util.find_spec(module) is not None:
            yield Check(distribution, "ok", f"{version}: {what}")
        else:
            yield Check(distribution, "note", f'not installed; without it no {what}. pip install "lensplorer[{extra}]"')


# -- the self-test ---------------------------------------------------------------------------------------------------------------------


def self_test(load: Callable[[], Any] | None = None) -> Iterator[Check]:
    """The identities that the library rests on, on the built-in model: what fails here fails everywhere.

    Args:
        load: gives the model; default: the built-in one.

    Cost: loads the model and runs it a few times.
    """
    state: dict[str, Any] = {}

    def loaded() -> str:
        from lensplorer.models import load_model, model_info

        state["model"] = load() if load is not None else load_model("storyworld")
        info = model_info(state["model"])
        return f"{info.name} on {info.device}" + ("" if info.difference is None else f", difference to Hugging Face {info.difference:.1e}")

    def traced() -> str:
        import lensplorer as lp

        state["trace"] = lp.run_trace(state["model"], "Once upon a time there was a")
        text = "".join(state["trace"].token_texts)
        _require("Once upon a time there was a" in text, f"the tokens read {text!r}")
        return f"{len(state['trace'])} tokens, next {lp.next_token(state['trace'], k=1).token.values[0]!r}"

    def decomposed() -> str:
        import lensplorer as lp

        target = int(state["trace"].logits[-1].argmax())
        error = float(lp.residual_decomposition(state["trace"], target).attrs["completeness"])
        _require(error < 1e-4, f"the parts miss the logit by {error:.1e} of it, expected below 1e-4")
        return f"the parts sum to the logit, off by {error:.1e}"

    def lens() -> str:
        import lensplorer as lp

        last = lp.logit_lens(state["trace"], top_k=1)
        error = float(abs(last["kl_to_final"].values[-1]).max())
        _require(error < 1e-4, f"the lens at the last layer differs from the model by {error:.1e} nats, expected below 1e-4")
        return f"at the last layer it is the model, off by {error:.1e} nats"

    def stepped() -> str:
        import lensplorer as lp

        session = lp.Session(state["model"])
        session.set_prompt("Once upon a time there was")
        session.append(" a")
        stepped_logits, whole = session.trace().logits[-1].float(), state["trace"].logits[-1].float()
        error = float((stepped_logits - whole).abs().max() / whole.abs().max())
        _require(error < 1e-4, f"a stepped run differs from a whole one by {error:.1e}, expected below 1e-4")
        return f"a step gives what a whole run gives, off by {error:.1e}"

    began = time.monotonic()
    for name, test in {"model": loaded, "trace": traced, "decomposition": decomposed, "logit lens": lens, "session": stepped}.items():
        try:
            yield Check(f"self-test, {name}", "ok", test())
        except _FAILURES as error:
            yield Check(f"self-test, {name}", "failed", f"{type(error).__name__}: {first_line(error)}")
            if name in ("model", "trace"):
                return  # the others need it
    yield Check("self-test", "ok", f"{time.monotonic() - began:.1f} s on {sys.implementation.name}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LensplorerError(otherwise)


def _size(count: float) -> str:
    """
    >>> _size(0), _size(2_500_000), _size(7e12)
    ('0 B', '2.5 MB', '7.0 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
