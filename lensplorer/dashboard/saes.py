"""The SAEs of one page: loaded in the background, audited, asked for features and labels."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lensplorer.errors import LensplorerError, SAEError, did_you_mean

if TYPE_CHECKING:
    from lensplorer.config import SAEConfig
    from lensplorer.dashboard.explorer import Explorer

logger = logging.getLogger(__name__)

_MOST_FOUND = 60  #: rows of a search sent to the page


class PageSAEs:
    """What is loaded, under which name, and the Python that loads it."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.loaded: dict[str, Any] = {}
        self.code: dict[str, str] = {}
        self.tables: dict[str, dict[str, Any]] = {}  # of those taken off too
        self.chosen = ""
        self._was_chosen = False  # by the person; until then the middle of the residual stream
        self.resumed = False  # with the page: those that a page begins with are not wanted
        self.loading: list[str] = []
        self.error = ""
        self.found: list[dict[str, Any]] = []
        self.asked = ""
        self.searched: str | None = None

    def forget(self) -> None:
        """Another model: its SAEs are others."""
        self.loaded, self.code, self.tables, self.chosen, self.loading, self.error, self.found = {}, {}, {}, "", [], "", []
        self.searched = None
        self._was_chosen = self.resumed = False

    # -- loading -----------------------------------------------------------------------------------------------------------------

    def start_loading(self, tables: Sequence[SAEConfig]) -> None:
        """Load these in the background, one after another. What does not load or does not fit is told; the others stay."""
        names = [describe_table(table) for table in tables]
        self.loading += names
        self.error = ""
        model = self.explorer.need_session().model

        def load() -> None:
            for table, name in zip(tables, names):
                sae, error = _load(table)
                self.explorer.later(partial(self._arrived, sae, error, table, name, model))

        threading.Thread(target=load, name="lensplorer-load-sae", daemon=True).start()

    def ready(self, tables: Sequence[SAEConfig]) -> tuple[list[tuple[Any, SAEConfig]], list[str]]:
        """Load these, but for those that are loaded already, and wait; the page is as it was.

        Returns:
            Those that fit the model, for ``take``, and why the others do not.
        """
        from lensplorer.saes.audit import check_sae

        model, known = self.explorer.need_session().model, [self.tables[name] for name in self.loaded]
        fitting: list[tuple[Any, SAEConfig]] = []
        refused: list[str] = []
        for table in tables:
            if _given(table) in known:
                continue
            sae, error = _load(table)
            try:
                if not error:
                    check_sae(model, sae)
            except LensplorerError as refusal:
                error = str(refusal)
            if error:
                refused.append(f"{describe_table(table)}: {error}")
            else:
                fitting.append((sae, table))
        return fitting, refused

    def take(self, found: Sequence[tuple[Any, SAEConfig]]) -> None:
        """Show what ``ready`` found: the page that was kept has no others."""
        self.resumed = True
        for sae, table in found:
            self._arrived(sae, "", table, describe_table(table), self.explorer.need_session().model)

    def needed(self, interventions: Sequence[Any]) -> list[dict[str, Any]]:
        """The tables of all that is loaded, and of what has been taken off while an intervention still changes its features."""
        from lensplorer.interventions.features import FeatureEdit
        from lensplorer.saes import sae_info

        edited = {sae_info(one.dictionary.sae).name for one in interventions if isinstance(one, FeatureEdit)}
        return [table for name, table in self.tables.items() if name in self.loaded or name in edited]

    def _failed(self, name: str, text: str) -> None:
        if name in self.loading:
            self.loading.remove(name)
        self.error = f"{name}: {text}"
        self.explorer.tell(self.error, kind="error")

    def _arrived(self, sae: Any, error: str, table: SAEConfig, name: str, model: Any) -> None:
        from lensplorer.saes import sae_info, sae_reads
        from lensplorer.saes.audit import check_sae

        session = self.explorer.session
        if name in self.loading:
            self.loading.remove(name)
        if session is None or session.model is not model:
            return  # the model has changed since
        if error:
            self._failed(name, error)
            return
        try:
            check_sae(model, sae)
            session.read_also(sae_reads(model, sae))
        except LensplorerError as refusal:
            self._failed(name, str(refusal))
            return
        known = sae_info(sae).name
        self.loaded[known], self.code[known] = sae, f"lp.load_sae({_arguments(table)})"
        self.tables[known] = _given(table)
        if not self._was_chosen:
            residual = self.residual()
            self.chosen = residual[len(residual) // 2] if residual else known
        self.explorer.forget_answers()

    def take_off(self, name: str) -> None:
        """Forget one of them."""
        self.check(name)
        del self.loaded[name], self.code[name]
        if self.chosen == name:
            self.chosen = next(iter(self.loaded), "")
        self.explorer.state.feature = None
        self.explorer.forget_answers()

    def choose(self, name: str) -> None:
        """Show this one's features."""
        self.check(name)
        self.chosen, self._was_chosen = name, True
        self.explorer.state.feature = None

    def check(self, name: str) -> None:
        """
        Raises:
            SAEError: no SAE of this name is loaded.
        """
        if name not in self.loaded:
            raise SAEError(f"No SAE {name!r} is loaded.{did_you_mean(name, self.loaded)}")

    def step(self, by: int) -> None:
        """The next SAE, in the order of layers.

        Raises:
            SAEError: none is loaded.
        """
        names = list(self.loaded)
        if not names:
            raise SAEError("No SAE is loaded: press f to choose one.")
        self.choose(names[(names.index(self.chosen) + by) % len(names)])

    def search(self, text: str) -> None:
        """Look the registry through for what fits the words, in the background; ``found`` then holds the first rows."""
        model = self.explorer.need_session().model
        self.asked = text

        def look() -> None:
            try:
                found, error = _search(text[:200], model), ""
            except LensplorerError as refusal:
                found, error = [], str(refusal)
            self.explorer.later(partial(self._searched, text, found, error))

        threading.Thread(target=look, name="lensplorer-search", daemon=True).start()

    def _searched(self, text: str, found: list[dict[str, Any]], error: str) -> None:
        if text == self.asked:  # not one that came late
            self.searched, self.found, self.error = text, found, error

    # -- asking ------------------------------------------------------------------------------------------------------------------

    def residual(self) -> list[str]:
        """Names of those that read the residual stream, by layer: one for each layer."""
        from lensplorer.saes import sae_info

        by_layer: dict[int, str] = {}
        for name, sae in self.loaded.items():
            info = sae_info(sae)
            if "resid" in info.hook and info.hook_out is None and info.layer is not None:
                by_layer.setdefault(info.layer, name)
        return [by_layer[layer] for layer in sorted(by_layer)]

    def labels(self, name: str, features: Sequence[int]) -> list[Any]:
        """What these features are about (see ``feature_labels``)."""
        from lensplorer.saes import feature_labels

        return feature_labels(self.explorer.need_session().model, self.loaded[name], features)


def _load(table: SAEConfig) -> tuple[Any, str]:
    """An SAE, or why there is none."""
    from lensplorer.saes import load_sae

    try:
        return load_sae(**asdict(table)), ""
    except LensplorerError as error:
        return None, str(error)
    except Exception as error:
        logger.exception("The SAE %s did not load", describe_table(table))
        return None, f"{type(error).__name__}: {error}"


def _search(text: str, model: Any) -> list[dict[str, Any]]:
    """The first rows of the registry that hold the words, what fits the model first."""
    from lensplorer.saes import search_saes

    rows = search_saes(text, model=model)
    order = rows.fits.map({"yes": 0, "unknown": 1, "no": 2})
    rows = rows.iloc[np.argsort(order.values, kind="stable")].head(_MOST_FOUND)
    named = ("release", "sae_id", "model", "hook", "fits")
    return [{name: getattr(row, name) for name in named} | {"width": _int(row.width), "l0": _int(row.l0)} for row in rows.itertuples()]


def _int(value: Any) -> int | None:
    """A number of the registry; None where it does not tell."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def describe_table(table: SAEConfig) -> str:
    """How to say which SAE a table means."""
    if table.release:
        return f"{table.release}/{table.sae_id}"
    return table.folder or "/".join(filter(None, (table.repo_id, table.filename)))


def _given(table: SAEConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(table).items() if value is not None}


def _arguments(table: SAEConfig) -> str:
    given = _given(table)
    first = [repr(given.pop(name)) for name in ("release", "sae_id") if name in given]
    return ", ".join([*first, *(f"{name}={value!r}" for name, value in given.items())])
