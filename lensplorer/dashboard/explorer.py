"""The explorer: a session, the page's state, and what the analyses say about them. No browser and no Panel in it.

``perform`` applies one command; ``results`` and ``candidates`` ask the analyses about the newest state. All of it runs on one thread (see
``worker``), except the loading of a model, which has a thread of its own so that the old model serves until the new one is ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lensplorer.analyses.lenses import logit_lens
from lensplorer.analyses.scores import next_token
from lensplorer.dashboard.actions import perform
from lensplorer.dashboard.colouring import available_views
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.state import PageState
from lensplorer.errors import LensplorerError, PromptError, SessionError
from lensplorer.models import LensModel
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.steps import STOP_REASONS
from lensplorer.session import Session
from lensplorer.trace import Trace, prompt_ids

logger = logging.getLogger(__name__)

#: name of the model (None is the default) → the loaded model
Loader = Callable[[str | None], LensModel]
#: puts a function in the queue of the explorer's own thread
Later = Callable[[Callable[[], None]], None]


class Explorer:
    """One person's page without the page.

    Args:
        options: what the page was started with.
        load: loads a model, or gives the one already loaded; called on a thread of its own.
        later: how that thread hands its model back.
    """

    def __init__(self, options: Options, *, load: Loader, later: Later) -> None:
        self.options = options
        self.load, self.later = load, later
        self.state = PageState()
        self.session: Session | None = None
        self.views = available_views()
        self._answers: dict[Any, Any] = {}
        self._answers_of: tuple[int, ...] = ()
        if options.seed is not None:
            torch.manual_seed(options.seed)

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def perform(self, message: Mapping[str, Any]) -> None:
        """Apply a command that the browser sent: its name under ``do``, its number under ``seq``. What goes wrong becomes the message."""
        self.state.message = None
        try:
            perform(self, str(message.get("do")), message)
        except LensplorerError as error:
            self.tell(str(error), kind="error")
        except Exception as error:
            logger.exception("The command %r failed", message.get("do"))
            self.tell(f"{message.get('do')} failed: {type(error).__name__}: {error}", kind="error")
        seq = message.get("seq")
        if isinstance(seq, int):
            self.state.acknowledged = max(self.state.acknowledged, seq)

    def tell(self, text: str, *, kind: str = "info") -> None:
        """Show ``text`` until the next command."""
        self.state.message = {"kind": kind, "text": text}

    def need_session(self) -> Session:
        """The session.

        Raises:
            SessionError: no model is loaded.
        """
        if self.session is None:
            raise SessionError("No model is loaded yet." if self.state.loading else "No model is loaded: press m and name one.")
        return self.session

    def play_on(self) -> None:
        """Take the next sampled step of a play, and end it where there is none."""
        if not self.state.playing or self.session is None:
            return
        if self.session.stop_reason is not None:
            self.state.playing = False
            self.tell(f"Stopped: {STOP_REASONS[self.session.stop_reason]}.")
            return
        self.perform({"do": "sample"})
        if (self.state.message or {}).get("kind") == "error":
            self.state.playing = False

    def set_prompt(self, text: str, *, truncate: bool = False) -> None:
        """Take ``text`` as the current prompt, or keep it in the editor with the reason why not."""
        session = self.need_session()
        try:
            session.set_prompt(prompt_ids(session.model, text, truncate=True) if truncate and text else self._not_empty(text))
        except PromptError as error:
            too_long = bool(text) and not truncate
            self.state.editor = {"text": text, "error": _without_api(str(error)), "can_truncate": too_long}
        else:
            self.state.editor = None
            self.state.selected = 0

    @staticmethod
    def _not_empty(text: str) -> str:
        if not text:  # a BOS token alone is a prompt for the library; a person who submits nothing has forgotten something
            raise PromptError("The prompt is empty: give at least one token of text.")
        return text

    def save(self) -> Path:
        """Write the session to a new file in the user's data folder, and return its path."""
        from platformdirs import user_data_path

        folder = user_data_path("lensplorer", appauthor=False) / "sessions"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SessionError(f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.") from error
        stem = time.strftime("%Y-%m-%d_%H-%M-%S")
        names = (f"{stem}{suffix}.json" for suffix in ("", *(f"_{i}" for i in range(2, 1000))))
        path = next(folder / name for name in names if not (folder / name).exists())
        self.need_session().save(path)
        return path

    # -- the model ---------------------------------------------------------------------------------------------------------------

    def start_loading(self, name: str | None) -> None:
        """Load a model in the background; the one in use serves until then."""
        if self.state.loading:
            raise SessionError(f"{self.state.loading!r} is still being loaded: wait for it.")
        self.state.loading, self.state.model_error = name or "the default model", ""

        def load() -> None:
            try:
                model = self.load(name)
            except LensplorerError as error:
                self.later(lambda text=str(error): self._loading_failed(text))  # type: ignore[misc]
            except Exception as error:
                logger.exception("The model %r did not load", name)
                text = f"{name!r} did not load: {type(error).__name__}: {error}"
                self.later(lambda: self._loading_failed(text))
            else:
                self.later(lambda: self.use(model))

        threading.Thread(target=load, name="lensplorer-load", daemon=True).start()

    def use(self, model: LensModel) -> None:
        """Take up a loaded model, with the current prompt's text or the first prompt."""
        text = self.session.text if self.session is not None else self.options.prompt
        reads: list[Any] = [analysis for view in self.views.values() for analysis in view.analyses() or ()] + [logit_lens]
        self.session = Session(model, max_prompts=self.options.config.prompt.max_prompts, reads=reads)
        self.session.decoding = DecodingParams(seed=self.options.seed)
        self._answers.clear()
        self.state.param.update(loading="", model_error="", layer=-1, selected=0, editor=None, playing=False)
        self.set_prompt(text)

    def _loading_failed(self, text: str) -> None:
        self.state.param.update(loading="", model_error=text)

    # -- answers -----------------------------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        return int(self.need_session().model.cfg.n_layers)

    @property
    def layer(self) -> int:
        """The chosen layer, 0 to n_layers; the one before the last until one is chosen."""
        return self.state.layer if 0 <= self.state.layer <= self.n_layers else self.n_layers - 1

    @property
    def position(self) -> int:
        return self.need_session().position

    @property
    def d_vocab(self) -> int:
        return int(self.need_session().model.cfg.d_vocab)

    @property
    def target(self) -> int | None:
        """The selected candidate, what attributions are about."""
        return self.selected_token()

    @property
    def trace(self) -> Trace:
        """The trace of the current prompt."""
        return self.need_session().trace()

    def __call__(self, function: Callable[..., Any], **options: Any) -> Any:
        """An analysis of the current trace, remembered while the prompt stays the same."""
        ids = self.need_session().ids
        if ids != self._answers_of:
            self._answers, self._answers_of = {}, ids
        key = (function.__name__, *sorted(options.items()))
        if key not in self._answers:
            self._answers[key] = function(self.trace, **options)
        return self._answers[key]

    def candidates(self) -> Any:
        """The candidates after the current position (see ``next_token``)."""
        return self(next_token, k=self.options.config.display.tokens_to_show, position=self.position, search=self.state.search or None)

    def selected_token(self) -> int:
        """The id of the selected candidate.

        Raises:
            SessionError: no candidate matches the search.
        """
        ids = self.candidates().token_id.values
        if not len(ids):
            raise SessionError(f"No token contains {self.state.search!r}: there is no candidate to take. Clear the search.")
        return int(ids[min(self.state.selected, len(ids) - 1)])


def _without_api(message: str) -> str:
    """The library's advice names an argument; the page has a button for it."""
    return message.replace("Shorten it, or pass truncate=True to keep the end.", "Shorten it, or keep its end.")
