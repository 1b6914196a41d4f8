"""The page: the explorer and its worker behind the shell, one of each per browser session; models are shared by all of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

import panel as pn
import panel_material_ui as pmui
from bokeh.document import Document
from panel.io.state import set_curdoc
from panel.util import edit_readonly

from lensplorer.catalogue import default_model_name
from lensplorer.dashboard import keeping
from lensplorer.dashboard.costs import Running
from lensplorer.dashboard.explorer import Explorer, Loader
from lensplorer.dashboard.options import Options, parse_options
from lensplorer.dashboard.shell import Shell
from lensplorer.dashboard.snapshot import later_parts, snapshot
from lensplorer.dashboard.worker import Worker
from lensplorer.errors import LensplorerError
from lensplorer.heap import freeze_imports
from lensplorer.hosts import host_name, refusal
from lensplorer.models import LensModel, load_model
from lensplorer.views.style import THEMES

PACE = 0.15  #: seconds from one step of a play to the next, beside what it takes
_TOGETHER = 0.03  # seconds in which parts are sent together: each message is a frame to draw
_TURN = 5e-4  # seconds a thread keeps Python to itself: at the usual 5 ms, a message that meets a page at work waits that long several times over

_SAFELY = "This page is served by `panel serve`, which asks for no token: `lensplorer explore --address ADDRESS` serves it to others safely."
_HOLDERS: WeakValueDictionary[str, Desk] = WeakValueDictionary()  # the key of a tab → the page that keeps what it shows under it
_STUCK = {
    "kind": "error",
    "text": "What this page is doing takes so long that the others no longer wait for it. Reload it: what was kept is resumed. The log says more.",
}

logger = logging.getLogger(__name__)

_PAGE_CSS = (Path(__file__).parent / "css" / "page.css").read_text(encoding="utf-8")


def shared_model(name: str | None, dtype: str = "float32") -> LensModel:
    """The model called ``name`` (None: the default), loaded once per server process."""
    name = name if name is not None else default_model_name()
    return pn.state.as_cached("lensplorer model", _load, name=name, dtype=dtype)


def _load(name: str, dtype: str) -> LensModel:
    freeze_imports()
    return load_model(name, dtype=dtype)


def build_page(options: Options, *, load: Loader | None = None) -> Any:
    """The page, ready to be served; the model loads in the background, through ``load`` where the server has a loader of its own."""
    return Desk(options, load=load).page


def page_of_arguments(arguments: Sequence[str]) -> Any:
    """The page for a list of command-line arguments, as ``panel serve`` asks for it. Where they are wrong, the page says so and stays alive.

    Nothing stands in front of it there, so it looks itself who asks: to a foreign host or page it says one sentence, loads nothing and takes no
    command.
    """
    try:
        options = parse_options(arguments)
        reason = _foreign(options)
        return build_page(options) if reason is None else pn.pane.Str(f"{reason} {_SAFELY}")
    except LensplorerError as error:
        logger.error("%s", error)
        return Desk(Options(), refusal=str(error)).page


def _foreign(options: Options) -> str | None:
    """Why whoever asks for the page of this moment does not get it; None where he does, or where there is no request."""
    request = getattr(pn.state.curdoc and pn.state.curdoc.session_context, "request", None)
    if request is None:
        return None
    sent = request._request.headers  # request.headers may come from the browser's own token
    return refusal(sent, names={host_name(name) for name in options.allowed_hosts})


class Desk:
    """One browser session: explorer, worker and the Panel objects that show them.

    Args:
        options: what the page is started with.
        refusal: why no model is to be loaded; empty to load the one of the options.
        load: loads a model by name; None: ``shared_model``.
    """

    def __init__(self, options: Options, *, refusal: str = "", load: Loader | None = None) -> None:
        self.worker = Worker(self._draw, self._finish, self._autosave)
        loader = load or partial(shared_model, dtype=options.dtype)
        self.explorer = Explorer(options, load=loader, later=self.worker.submit, interrupted=self.worker.is_waiting)
        self.explorer.costs.tell = self._tell_running
        self.explorer.state.model_error = refusal
        self.shell = Shell(snapshot(self.explorer), sizing_mode="stretch_both")
        self.shell.on_msg(self._receive)
        self.page = pmui.Page(
            main=[self.shell],
            title="lensplorer",
            theme_toggle=False,
            busy_indicator=None,
            dark_theme=True,
            raw_css=[_PAGE_CSS],
            stylesheets=[_HIDE_BAR],
        )
        with edit_readonly(self.page):
            self.page.busy = False  # in place of a reference to the server's business, which cost 20 ms of model searches per key
        for _, watcher in self.page._param__private.ref_watchers:
            pn.state.param.unwatch(watcher)  # it would keep every page ever opened, and call each on every key
        self._doc: Document | None = pn.state.curdoc
        self._loop = _running_loop()
        self._taking: asyncio.Future[None] | None = None  # held, since the loop holds its tasks weakly
        self._next: dict[str, Any] | None = None  # parts that the document has not taken yet
        self._waits = math.inf  # seconds until it is asked to
        self._mutex = threading.Lock()
        self._arguments = dict(pn.state.session_args or {})
        self._tab: str | None = None  # the key of the browser's tab, once it has said it; empty where the page is not kept
        self._hold: IO[bytes] | None = None  # the key's lock
        self._saving = threading.Lock()
        self._kept: Any = None
        self._warned = False
        self._panels_took = math.inf  # seconds, the last time
        self._pace: threading.Thread = threading.Thread()  # the timer between two steps of a play
        sys.setswitchinterval(min(sys.getswitchinterval(), _TURN))
        pn.state.onload(self._start)
        if self._doc is not None:
            pn.state.on_session_destroyed(lambda context: self._stop())

    # -- browser → worker --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.shell.ready = True

    def _stop(self) -> None:
        self.explorer.state.playing = False
        self.explorer.costs.stop.set()
        self.worker.submit(self._autosave)
        self.worker.submit(self._give_up_tab)
        self.worker.stop()

    def _begin(self, tab: str | None) -> None:
        """On the worker's thread, when the browser listens: resume what this tab showed, follow its link, or load the first model."""
        if self._tab == "" and tab and self.explorer.session is not None:
            self._take_fresh_tab()
        if self._tab is not None or self.explorer.state.model_error:
            return
        self._tab = ""
        asked = {name: values[-1].decode("utf-8", errors="replace") for name, values in (self._arguments or {}).items() if values}
        kept = None
        try:
            if tab:
                kept = self._take_tab(tab)
            if kept is not None and not asked.get("model"):
                keeping.resume(self.explorer, kept)
                return
        except LensplorerError as error:
            self.explorer.tell(f"The page is not kept: {error}", kind="error")
        keeping.follow_link(self.explorer, asked, kept=kept)
        self.explorer.start_loading(asked.get("model") or self.explorer.options.model, otherwise=partial(self._not_loaded, kept))

    def _not_loaded(self, kept: Path | None, text: str) -> None:
        if kept is not None:  # the next model that is loaded would be kept in its place
            self.explorer.tell(f"{text} What this tab showed before: {keeping.set_aside(kept)}", kind="error")

    # -- the tab's key -----------------------------------------------------------------------------------------------------------

    def _take_tab(self, tab: str) -> Path | None:
        """Make a tab's key this page's own; returns the autosave to begin with.

        A page that was reloaded gives its key up. Where one that is still looked at has it (a browser copies it with "duplicate tab"), or another
        process, this page gets a fresh one and tells the browser: two that save under one key would overwrite each other.

        Raises:
            SessionError: it is no key of a tab, or nothing can be kept.
        """
        keeping.check_key(tab)
        holder = _HOLDERS.get(tab)
        if holder is not None:
            if not holder.worker.is_stuck:
                holder._autosave()  # while it is this page's turn, the other changes nothing
            if not holder._is_looked_at():
                holder._give_up_tab()
        keeping.forget_old(keep=tab)
        self._hold = keeping.hold(tab) if tab not in _HOLDERS else None
        own = tab if self._hold is not None else secrets.token_hex(16)
        self._hold = self._hold or keeping.hold(own)
        self._tab = own
        _HOLDERS[own] = self
        threading.current_thread().name = f"lensplorer-page {own[:8]}"
        if own == tab:
            return keeping.autosaved(tab)
        self._send({"tab": own})
        return keeping.copied(tab, own)

    def _take_fresh_tab(self) -> None:
        """The browser was away, and another page has taken the key over; or nothing could be kept until now."""
        with suppress(LensplorerError):  # told before
            self._take_tab(secrets.token_hex(16))
            self._send({"tab": self._tab})

    def _give_up_tab(self) -> None:
        """Keep nothing more under the tab's key."""
        with self._saving:
            if _HOLDERS.get(self._tab or "") is self:
                del _HOLDERS[self._tab or ""]
            if self._hold is not None:
                self._hold.close()
            self._tab, self._hold = "", None

    def _is_looked_at(self) -> bool:
        """Whether a browser is connected to this page, as far as can be known."""
        context = self._doc.session_context if self._doc is not None else None
        session = getattr(context, "session", None)
        return session is None or session.connection_count > 0

    def _receive(self, event: Any) -> None:
        message = event.data
        if not isinstance(message, dict):
            return
        if self.worker.is_stuck:
            self._send({"status": {**self.shell._shown.get("status", {}), "message": _STUCK}})
        if message.get("do") == "hello":  # the browser listens from now on: messages before were lost
            send_at_once(self._doc)
            self.shell.forget()
            tab = message.get("tab")
            self.worker.submit(partial(self._begin, tab if isinstance(tab, str) else None))
        else:
            if message.get("do") == "stop":
                self.explorer.costs.stop.set()  # at once: the thread is busy with what is to be stopped
            self.worker.submit(partial(self.explorer.perform, message))

    # -- worker → browser --------------------------------------------------------------------------------------------------------

    def _draw(self, started: float) -> None:
        """On the worker's thread: picture the newest state, and have the document take it; a picture not yet taken is replaced.

        Where the panels are as quick as they were the last time, it goes with them.
        """
        picture = snapshot(self.explorer)
        picture["status"]["milliseconds"] = 1000 * (time.perf_counter() - started)
        self._send(picture, within=_TOGETHER if self._panels_took < _TOGETHER else 0.0)

    def _finish(self) -> None:
        """As ``_draw``, for the parts that may come later; then the next step of a play."""
        started = time.perf_counter()
        for part in later_parts(self.explorer):
            self._send(part, within=_TOGETHER)
            if self.worker.is_waiting():
                return
        self._panels_took = time.perf_counter() - started
        self._send({"settled": {"seq": self.explorer.state.acknowledged, "milliseconds": 1000 * self._panels_took}})
        if self.explorer.state.playing and not self._pace.is_alive():
            self._pace = threading.Timer(PACE, self.worker.submit, [self.explorer.play_on])
            self._pace.daemon = True
            self._pace.start()

    def _autosave(self) -> None:
        """Keep what is on screen under the tab's key. A disk that is full is told once; the page goes on."""
        session = self.explorer.session
        if session is None or not session.ids:
            return
        try:
            with self._saving:
                state = (session.state, session.decoding, session.constraint, session.model_on, keeping.page_state(self.explorer))
                if self._tab and state != self._kept:
                    keeping.autosave(self.explorer, self._tab)
                    self._kept, self._warned = state, False
        except LensplorerError as error:
            if not self._warned:
                self._warned = True
                self.explorer.tell(f"The page is not kept: {error}", kind="error")
                self._send({"status": snapshot(self.explorer)["status"]})

    def _tell_running(self, running: Running | None) -> None:
        self._send({"running": asdict(running) if running is not None else None})

    def _send(self, parts: dict[str, Any], *, within: float = 0.0) -> None:
        """Have the document take these parts at once, or ``within`` seconds together with what comes until then: each message is a frame to draw."""
        with self._mutex:
            self._next = {**(self._next or {}), **parts}
            waits, self._waits = self._waits, min(self._waits, within)
        if within >= waits:
            return
        if self._loop is None or self._doc is None or self._doc.session_context is None:
            self._show()
        else:
            with contextlib.suppress(RuntimeError):  # the server has ended, and its loop with it
                self._loop.call_soon_threadsafe(self._loop.call_later, within, self._take)

    def _take(self) -> None:
        """On the server's thread: show it once the document is free. A callback added to the document while it holds its events would be lost."""
        context = self._doc.session_context  # type: ignore[union-attr]
        if context is not None and not context.destroyed:
            self._taking = asyncio.ensure_future(context.with_locked_document(self._show_locked))

    async def _show_locked(self, doc: Document) -> None:
        with set_curdoc(doc):
            self._show()

    def _show(self) -> None:
        """Under the document's lock: send what changed."""
        with self._mutex:
            picture, self._next, self._waits = self._next or {}, None, math.inf
        self.shell.show(picture)
        if "status" in picture:
            self.page.dark_theme = picture["status"]["theme"] == "dark"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The server's event loop; None outside a server."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def send_at_once(doc: Any) -> None:
    """Switch off Nagle's algorithm on the page's connections.

    Bokeh sends a message in several small frames. With Nagle's algorithm the later ones wait for the browser's delayed acknowledgement of
    the first: 40 ms on every key.
    """
    session = getattr(getattr(doc, "session_context", None), "session", None)
    for connection in getattr(session, "_subscribed_connections", ()):
        if hasattr(connection._socket, "set_nodelay"):  # uvicorn's sockets are so from the start
            connection._socket.set_nodelay(True)


_HIDE_BAR = f"""
.MuiAppBar-root, .main > div > .MuiToolbar-root {{ display: none !important; }}
.main {{ background: {THEMES["dark"]["background"]} !important; }}
"""
