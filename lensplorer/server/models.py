"""The models of the server: loaded once for all who use them, and the one that answers over HTTP.

A new model is loaded in the background while the old one answers. Models are kept for as long as somebody holds them: the API, or a session of
the dashboard.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from lensplorer.catalogue import default_model_name
from lensplorer.errors import LensplorerError, ModelError
from lensplorer.heap import freeze_imports
from lensplorer.locks import FairLock
from lensplorer.models import LensModel, load_model, model_info
from lensplorer.server.settings import ServerSettings
from lensplorer.stepping import TokenTree, bytes_per_token
from lensplorer.watching import tick

logger = logging.getLogger(__name__)

_LEAST_BYTES = 2**24  # of the activations kept; more where the longest prompt needs more
_TREE_TOKENS = 100_000  # a tree drops activations and never tokens: after so many it is begun anew


class ModelRefused(ModelError):
    """The model's name may not be loaded over HTTP."""


class ModelNotReady(ModelError):
    """No model is loaded yet, or none could be."""


class ModelBusy(ModelError):
    """Another model is being loaded."""


class ModelStore:
    """Name → model, loaded when it is first asked for, and only what the settings allow.

    Args:
        settings: what may be loaded, and in which dtype.
        load: as ``load_model``.
    """

    def __init__(self, settings: ServerSettings, load: Callable[..., Any] = load_model) -> None:
        self.settings, self._load = settings, load
        self._loaded: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # who wants a model at hand does not wait for another
        self._first = settings.model or default_model_name()

    def check(self, name: str | None) -> None:
        """
        Raises:
            ModelRefused: the model called ``name`` may not be loaded over HTTP.
        """
        if name is not None and name != self._first and not self.settings.may_load(name):
            raise ModelRefused(
                f"The model {name!r} may not be loaded here. Start the server with --allow-model for a built-in or hub name, or with --model-dir"
                " for the models of a folder."
            )

    def get(self, name: str | None = None) -> LensModel:
        """The model called ``name``; None is the one the server was started with.

        Raises:
            ModelRefused: it may not be loaded over HTTP.
            ModelError: as ``load_model``.
        """
        self.check(name)
        name = name or self._first
        with self._locks[name]:
            model = self._loaded.get(name)
            if model is None:
                freeze_imports()
                model = self._loaded[name] = self._load(name, dtype=self.settings.dtype)
            return model

    def keep(self, model: LensModel) -> None:
        """Give ``model`` to whoever asks for the one the server was started with."""
        self._loaded[self._first] = model


class Served:
    """A model that answers, with the tokens it has been run over so far.

    Args:
        model: the model.
        max_tokens: the longest prompt that it is given.
    """

    def __init__(self, model: LensModel, max_tokens: int) -> None:
        self.model = model
        self.info = model_info(model)
        longest = min(max_tokens, self.info.n_ctx)
        self._max_bytes = max(_LEAST_BYTES, 2 * longest * bytes_per_token(model))
        self._tokens = 0
        self._tree = self._new_tree()
        self._lock = FairLock()

    def _new_tree(self) -> TokenTree:
        return TokenTree(self.model, reads=[], max_bytes=self._max_bytes)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits that predict what follows ``ids``; only tokens not seen before are run. [d_vocab]

        Raises:
            PromptError: an id is outside the vocabulary, or there are more than the context holds.
        """
        tick()  # others may go first now, and not between two pieces: they may need the tree, which must be whole then
        with self._lock:
            if self._tokens > _TREE_TOKENS:
                self._tree, self._tokens = self._new_tree(), 0
            runs = self._tree.n_runs
            node = self._tree.extend(self._tree.root, list(ids))
            if self._tree.n_runs > runs:
                self._tokens += len(ids)
            return self._tree.logits(node)

    def describe(self) -> dict[str, Any]:
        """What every answer says about the model."""
        tokenizer = self.model.tokenizer
        return {
            "model_id": self.info.name,
            "device": self.info.device,
            "dtype": self.info.dtype,
            "has_chat_template": getattr(tokenizer, "chat_template", None) is not None,
            "eos_token_id": tokenizer.eos_token_id,
            "vocab_size": int(self.model.cfg.d_vocab),
        }


class ModelService:
    """The model that answers over HTTP, and the loading of the next one.

    Args:
        store: where models come from.
        model: one that is loaded already.
    """

    def __init__(self, store: ModelStore, model: LensModel | None = None) -> None:
        self.store = store
        self._served = None if model is None else Served(model, store.settings.max_tokens)
        self._loading: str | None = None
        self._error: str | None = None
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def served(self) -> Served:
        """
        Raises:
            ModelNotReady: there is none.
        """
        if self._served is None:
            raise ModelNotReady("The model is being loaded: try again shortly." if self._loading else self._error or "No model is loaded.")
        return self._served

    def status(self) -> dict[str, Any]:
        """As the next-token visualization reports it: ``ready`` once the model asked for last answers; ``model_id`` is the one asked for.

        ``serving`` is the model that answers meanwhile, or after a failure.
        """
        served = self._served
        nothing = {"model_id": "", "device": "cpu", "dtype": "float32", "has_chat_template": False, "eos_token_id": None, "vocab_size": None}
        with self._mutex:
            return {
                **(nothing if served is None else served.describe()),
                **({} if self._loading is None else {"model_id": self._loading}),
                "loading": self._loading is not None,
                "ready": served is not None and self._loading is None and self._error is None,
                "error": self._error,
                "serving": None if served is None else served.info.name,
            }

    def load(self, name: str | None) -> str:
        """Begin to load a model in the background; returns its name.

        Raises:
            ModelRefused: it may not be loaded over HTTP.
            ModelBusy: another one is being loaded.
        """
        self.store.check(name)
        shown = name or default_model_name()
        with self._mutex:
            if self._loading is not None:
                raise ModelBusy(f"{self._loading!r} is still being loaded: wait for it.")
            self._loading, self._error = shown, None
        self._thread = threading.Thread(target=self._work, args=(name,), name="lensplorer-load", daemon=True)
        self._thread.start()
        return shown

    def wait(self, timeout: float | None = None) -> None:
        """Until the loading under way has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self, name: str | None) -> None:
        served, error = None, None
        try:
            served = Served(self.store.get(name), self.store.settings.max_tokens)
        except LensplorerError as refused:
            error = str(refused)
        except Exception as broken:
            logger.exception("The model %r did not load", name)
            error = f"{name!r} did not load: {type(broken).__name__}. The server's log says more."
        with self._mutex:
            self._served, self._loading, self._error = served or self._served, None, error
        gc.collect()  # the old model's cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
