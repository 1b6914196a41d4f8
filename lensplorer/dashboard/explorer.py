"""The explorer: a session, the page's state, and what the analyses say about them. No browser and no Panel in it.

``perform`` applies one command; calling the explorer asks an analysis about the current prompt, and ``panel`` builds one panel. All of it runs
on one thread (see ``worker``), except the loading of models and SAEs, which have threads of their own so that the old ones serve until then.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import xarray as xr

from lensplorer.analyses.scores import next_token, token_scores
from lensplorer.dashboard.actions import perform
from lensplorer.dashboard.asking import Call, Dictionary, Here, Source, Window, call
from lensplorer.dashboard.colouring import Colouring, TokenView, available_views
from lensplorer.dashboard.costs import Costs, key_of
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.panels import PANELS, needed_reads
from lensplorer.dashboard.panels.base import Panel
from lensplorer.dashboard.saes import PageSAEs
from lensplorer.dashboard.state import PageState
from lensplorer.dashboard.worker import TURNS
from lensplorer.errors import Cancelled, LensplorerError, PromptError, SessionError
from lensplorer.models import LensModel
from lensplorer.running import run_model
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.steps import STOP_REASONS
from lensplorer.session import Session
from lensplorer.tokens import token_text, visible
from lensplorer.trace import prompt_ids

logger = logging.getLogger(__name__)

#: name of the model (None is the default) → the loaded model
Loader = Callable[[str | None], LensModel]
#: puts a function in the queue of the explorer's own thread
Later = Callable[[Callable[[], None]], None]

HERE = Here()
_PACE_TOKENS = 16
_TEXT = "the text"  #: what runs, where it is the prompt itself
_AT_ONCE = 32  # tokens that are run on the way to the picture, whatever they take
_NOTICED = 0.3  # seconds: a text that takes longer is shown before it is run
_BY_ITSELF = ("show_panels", "set_theme")  # what the browser tells unasked: a message stays until the person's next command
_LONG = 0.3  # seconds: a panel that takes longer does not keep others from their turn
_LONGEST_TOKEN = 200  # characters; a token of a whole line of dashes need not be sent in full


@dataclass(frozen=True)
class Waiting:
    """How many tokens of how many are to be run, about how long that takes, and whether the person stopped it."""

    tokens: int
    of: int
    seconds: float
    held: bool


class Explorer:
    """One person's page without the page.

    Args:
        options: what the page was started with.
        load: loads a model, or gives the one already loaded; called on a thread of its own.
        later: how that thread hands its model back.
        interrupted: whether a command is waiting, for which a panel in the making gives way.
    """

    def __init__(self, options: Options, *, load: Loader, later: Later, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.options = options
        self.load, self.later = load, later
        self.state = PageState(layer_display="probability" if options.layer_prob else "")
        self.session: Session | None = None
        self.views = available_views()
        self.settings: dict[str, dict[str, Any]] = {"features": {"show": "path through layers"}} if options.cross_layer else {}
        self.saes = PageSAEs(self)
        self.costs = Costs(interrupted)
        self.made: dict[Any, tuple[str, str]] = {}  # intervention → the Python that made it, and the SAE in it
        self.resume: Callable[[Session], None] | None = None  # what to do with the next model's session in place of the first prompt
        self._answers: dict[Any, Any] = {}
        self._answers_of: Any = ()
        self._held: Any = None  # the text whose run the person stopped
        self._asked: list[Call] | None = None
        self._asked_by: dict[str, list[Call]] = {}
        self._asked_when: dict[str, Any] = {}

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def perform(self, message: Mapping[str, Any]) -> None:
        """Apply a command that the browser sent: its name under ``do``, its number under ``seq``. What goes wrong becomes the message."""
        if message.get("do") not in _BY_ITSELF:
            self.state.message = None
            self.state.download = None
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

    def set_chat(self, system: str, user: str) -> None:
        """Put a system and a user prompt through the model's own chat template.

        Raises:
            PromptError: the model has no template; or both are empty.
        """
        turns = [{"role": role, "content": text} for role, text in (("system", system), ("user", user)) if text]
        if not turns:
            raise PromptError("The chat is empty: write at least the user's part.")
        self.need_session().set_prompt(turns)
        self.state.selected = 0

    def intervene(self, intervention: Any, code: str, sae: str) -> None:
        """Run the model under one more intervention, and remember the Python that makes it."""
        self.need_session().intervene(intervention)
        self.made[intervention] = (code, sae)

    @staticmethod
    def _not_empty(text: str) -> str:
        if not text:  # a BOS token alone is a prompt for the library; a person who submits nothing has forgotten something
            raise PromptError("The prompt is empty: give at least one token of text.")
        return text

    # -- the model ---------------------------------------------------------------------------------------------------------------

    def start_loading(self, name: str | None, *, otherwise: Callable[[str], None] = lambda text: None) -> None:
        """Load a model in the background; the one in use serves until then. ``otherwise`` is called with the reason where it does not load."""
        if self.state.loading:
            raise SessionError(f"{self.state.loading!r} is still being loaded: wait for it.")
        self.state.loading, self.state.model_error = name or "the default model", ""

        def load() -> None:
            try:
                model = self.load(name)
            except LensplorerError as error:
                self.later(lambda text=str(error): self._loading_failed(text, otherwise))  # type: ignore[misc]
            except Exception as error:
                logger.exception("The model %r did not load", name)
                text = f"{name!r} did not load: {type(error).__name__}: {error}"
                self.later(lambda: self._loading_failed(text, otherwise))
            else:
                self.later(lambda: self.use(model))

        threading.Thread(target=load, name="lensplorer-load", daemon=True).start()

    def use(self, model: LensModel) -> None:
        """Take up a loaded model, with the current prompt's text or the first prompt."""
        text = self.session.text if self.session is not None else self.options.prompt
        is_first = self.session is None
        reads: list[Any] = [analysis for view in self.views.values() for analysis in view.analyses() or ()] + needed_reads()
        self.session = Session(model, max_prompts=self.options.config.prompt.max_prompts, reads=reads)
        self.session.decoding = DecodingParams(seed=self.options.seed)
        self.forget_answers()
        self.costs.forget()
        self.saes.forget()
        self.made.clear()
        self.state.param.update(loading="", model_error="", layer=-1, selected=0, editor=None, playing=False, aim=None, feature=None)
        resume, self.resume = self.resume, None
        if resume is not None:
            resume(self.session)
        else:
            self.set_prompt(text)
        self._take_the_pace()
        if is_first and not self.saes.resumed:
            self._load_first_saes()

    def _take_the_pace(self) -> None:
        """Run a short prompt, and where that is quick a batch of it: what long panels will take is reckoned from the best pace."""
        session = self.need_session()
        if not session.ids:
            return
        row = torch.tensor([(session.ids * _PACE_TOKENS)[:_PACE_TOKENS]], device=session.model.cfg.device)
        for batch in (1, 1, 16):
            started = time.perf_counter()
            run_model(session.model, row.expand(batch, -1))
            seconds = time.perf_counter() - started
            self.costs.ran(seconds, batch * _PACE_TOKENS)
            if seconds > 0.1:
                return

    def _load_first_saes(self) -> None:
        """The SAEs of the options: those of a file, of the configuration, or the built-in model's own."""
        from lensplorer.config import SAEConfig, load_config
        from lensplorer.models import model_info
        from lensplorer.saes.registry import BUILT_IN, built_in_ids

        tables = self.options.config.sae
        if self.options.sae_config is not None:
            try:
                tables = load_config(self.options.sae_config).sae
            except LensplorerError as error:
                self.tell(str(error), kind="error")
                return
        elif not self.options.config.model.enable_sae:
            return
        elif not tables:
            name = model_info(self.need_session().model).name
            tables = tuple(SAEConfig(release=name, sae_id=sae_id) for sae_id in built_in_ids(name)) if name in BUILT_IN else ()
        if tables:
            self.saes.start_loading(tables)

    def _loading_failed(self, text: str, otherwise: Callable[[str], None]) -> None:
        self.resume = None
        self.state.param.update(loading="", model_error=text)
        otherwise(text)

    # -- the run of the text -----------------------------------------------------------------------------------------------------

    def waiting(self) -> Waiting | None:
        """What the current text has yet to be run over, where that takes so long that it is shown first; None where it does not."""
        session = self.session
        if session is None or not session.ids or not session.model_on or session.unrun <= _AT_ONCE:
            return None
        seconds = self.costs.forward(session.unrun)
        return Waiting(session.unrun, len(session.ids), seconds, self._held == self._key()) if seconds > _NOTICED else None

    def run_text(self) -> None:
        """Run the current text, which can be watched and stopped between two pieces of it; what was done stays.

        Raises:
            Cancelled: a command came in between, or the person stopped it.
            PromptError: it does not fit the memory.
        """
        session = self.need_session()
        n, started = session.unrun, time.perf_counter()
        try:
            with self.costs.running(_TEXT, self.costs.forward(n)):
                self.scores()
        except Cancelled:
            if self.costs.stop.is_set():
                self._held = self._key()
            raise
        self.costs.ran(time.perf_counter() - started, n)

    def go_on(self) -> None:
        """Run the text after all whose run was stopped."""
        self._held = None

    # -- where -------------------------------------------------------------------------------------------------------------------

    @property
    def ids(self) -> tuple[int, ...]:
        return self.need_session().ids

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
    def at_end(self) -> bool:
        """Whether the analyses look at the last token."""
        return self.position == len(self.ids) - 1

    @property
    def d_vocab(self) -> int:
        return int(self.need_session().model.cfg.d_vocab)

    @property
    def target(self) -> int:
        """The selected candidate, what decompositions are about."""
        return self.selected_token()

    @property
    def aim(self) -> int:
        """What attributions are about: the candidate pointed at, else the selected one."""
        return self.state.aim if self.state.aim is not None else self.selected_token()

    def shown_token(self, token_id: int) -> str:
        """A token as the page writes it."""
        return _visible(self.need_session().model.tokenizer, int(token_id))

    def shown_tokens(self) -> list[str]:
        """The tokens of the current prompt, as the page writes them."""
        return list(_all_visible(self.need_session().model.tokenizer, self.ids))

    def special_ids(self) -> frozenset[int]:
        return _special_ids(self.need_session().model.tokenizer)

    def other_prompts(self) -> dict[str, tuple[int, ...]]:
        """The prompts beside the current one, by a name with their number."""
        session = self.need_session()
        return {
            f"prompt {i + 1}: …{str(session.model.tokenizer.decode(list(prompt.ids[-8:]))).strip()}": prompt.ids
            for i, prompt in enumerate(session.state.prompts)
            if i != session.state.current and prompt.ids
        }

    # -- answers -----------------------------------------------------------------------------------------------------------------

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """An analysis of the current trace, remembered while the prompt stays the same."""
        return self.ask(call(function, HERE, *arguments, **options))

    def ask(self, question: Call) -> Any:
        """The answer, which the panel in the making is then known by."""
        self.note(question)
        return self.answer(question)

    def answer(self, source: Source, find: Callable[[], Any] | None = None) -> Any:
        """The value of a source, remembered while prompt and interventions stay the same; ``find`` is a cheaper way to it."""
        key = self._key()
        if key != self._answers_of:
            self._answers, self._answers_of = {}, key
            self.costs.revoke()
        if isinstance(source, Dictionary):
            return source.value(self)
        if source not in self._answers:
            self._answers[source] = find() if find is not None else source.value(self)
        return self._answers[source]

    def _key(self) -> Any:
        """What answers hold for."""
        session = self.need_session()
        return session.ids, session.interventions

    def note(self, question: Call) -> None:
        """The panel in the making shows this, found in a cheaper way; the question is what its script and its data are made from."""
        if self._asked is not None:
            self._asked.append(question)

    def look(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """An analysis that takes a ``position``, at the one looked at: a run of that position alone says the same."""
        self.note(call(function, HERE, *arguments, position=self.position, **options))
        return self.answer(call(function, self.here, *arguments, **options))

    def scores(self) -> xr.Dataset:
        """Each token's scores."""

        def along() -> xr.Dataset:
            return xr.Dataset({name: ("position", values) for name, values in self.need_session().along(token_scores, last=2).items()})

        return self.answer(call(token_scores, HERE), along)

    @property
    def here(self) -> Window:
        """The run up to the position looked at."""
        return Window(self.position)

    def has_answer(self, question: Source) -> bool:
        return question in self._answers

    def forget_answers(self) -> None:
        """What was asked no longer holds: another model, other activations."""
        self._answers, self._answers_of = {}, ()

    def candidates(self) -> Any:
        """The candidates after the current position (see ``next_token``).

        Raises:
            SessionError: the text is still to be run.
        """
        waiting = self.waiting()
        if waiting is not None:
            raise SessionError("The run of this text was stopped: press r to go on." if waiting.held else "The text is still being run: . stops it.")
        k = self.options.config.display.tokens_to_show
        return self.answer(call(next_token, self.here, k=k, search=self.state.search or None))

    def selected_token(self) -> int:
        """The id of the selected candidate.

        Raises:
            SessionError: no candidate matches the search.
        """
        ids = self.candidates().token_id.values
        if not len(ids):
            raise SessionError(f"No token contains {self.state.search!r}: there is no candidate to take. Clear the search.")
        return int(ids[min(self.state.selected, len(ids) - 1)])

    def best_token(self, source: Source) -> int:
        """The most likely next token at the end of a run."""
        trace = self.answer(source)
        return int(trace.logits_at(len(trace) - 1, len(trace)).argmax())

    @property
    def view(self) -> TokenView:
        return self.views[self.state.view]

    def colouring(self) -> Colouring | None:
        """The current view's number of each token; None for the plain prompt."""
        return self.view.colour(self, *(self.view.analyses() or ())) if self.view.colour is not None else None

    def strongest_feature(self) -> int | None:
        """The feature of the chosen SAE most active at the position looked at; None where none is."""
        from lensplorer.analyses.features import feature_activations

        feature = int(self.answer(call(feature_activations, HERE, Dictionary(self.saes.chosen), k=1)).feature.values[self.position, 0])
        return feature if feature >= 0 else None

    # -- panels ------------------------------------------------------------------------------------------------------------------

    @property
    def forward_seconds(self) -> float:
        """About how long one run over the current prompt takes."""
        return self.costs.forward(len(self.ids))

    def cost(self, panel: Panel, settings: Mapping[str, Any]) -> float:
        """About how long this panel takes, in seconds; 0 when it is always quick."""
        if panel.seconds is None:
            return 0.0
        return self.costs.expected(key_of(panel.name, dict(settings)), panel.seconds(self, settings))

    @contextmanager
    def building(self, panel: Panel, settings: Mapping[str, Any]) -> Iterator[None]:
        """While a panel is built: what it asks is kept for its script and its data, and it can be stopped.

        Raises:
            Cancelled: a command came in between, or the person stopped it.
        """
        key = key_of(panel.name, dict(settings))
        guess = panel.seconds(self, settings) if panel.seconds is not None else 0.0
        self._asked = []
        started = time.perf_counter()
        known = len(self._answers)
        try:
            expected = self.costs.expected(key, guess)
            with TURNS if expected < _LONG else nullcontext(), self.costs.running(panel.name, expected):
                yield
            self._asked_by[panel.name], self._asked_when[panel.name] = self._asked, self._key()
            if len(self._answers) > known:
                self.costs.learn(key, guess, time.perf_counter() - started)
        finally:
            self._asked = None

    def asked_by(self, name: str) -> list[Call]:
        """What a panel on screen asked.

        Raises:
            SessionError: it shows nothing.
        """
        asked = list(dict.fromkeys(self._asked_by.get(name, [])))
        if not asked or self._asked_when.get(name) != self._key():
            raise SessionError(f"The panel {PANELS[name].title!r} shows no result now: there is nothing to copy or save.")
        return asked

    @staticmethod
    def is_imported(module: str) -> bool:
        return module in sys.modules


def _without_api(message: str) -> str:
    """The library's advice names an argument; the page has a button for it."""
    return message.replace("Shorten it, or pass truncate=True to keep the end.", "Shorten it, or keep its end.")


@lru_cache(maxsize=100_000)
def _visible(tokenizer: Any, token_id: int) -> str:
    text = visible(token_text(tokenizer, token_id))
    return text if len(text) <= _LONGEST_TOKEN else text[: _LONGEST_TOKEN - 1] + "…"


@lru_cache(maxsize=16)
def _all_visible(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    return [_visible(tokenizer, token_id) for token_id in ids]


@lru_cache(maxsize=4)
def _special_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(tokenizer.all_special_ids)
