"""What is kept of a page: saved sessions, an autosave that a reload or a crash resumes from, and a link.

Each is one session file (see ``Session.save``) with what was on screen in it. It is read as a whole and checked before anything changes; what does
not come back stays on the disk under a name that no page writes to.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

from platformdirs import user_data_path
from pydantic import BaseModel, Field

from lensplorer.config import SAEConfig
from lensplorer.dashboard.panels import PANELS
from lensplorer.errors import LensplorerError, SessionError, did_you_mean
from lensplorer.formats.files import read_bytes
from lensplorer.models import model_info
from lensplorer.session import Session
from lensplorer.sessionfile import MAX_BYTES, Strict, parsed, read_file, read_session, session_content, summary, write_session

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

logger = logging.getLogger(__name__)

_PAGE = ".page.json"  # beside a session file, where the page was kept in the first versions
_KEY = r"[0-9a-f]{32}"  # of a tab
_ASIDE = "-damaged-"  # in the names of autosaves that did not come back
_MOST_AUTOSAVES = 40
_MOST_ASIDE = 20
_MOST_LISTED = 30


class _Shown(Strict):
    """What of ``PageState`` is kept."""

    view: str = "probability"
    layer: Annotated[int, Field(ge=-1, lt=10_000)] = -1
    z_scores: bool = True
    theme: Literal["dark", "light"] = "dark"
    layer_display: Literal["", "probability", "logit", "correlation"] = ""


class Page(Strict):
    """What is on screen beside the session."""

    state: _Shown
    settings: dict[str, dict[str, bool | int | float | str]]
    open: list[str] | None
    saes: Annotated[list[SAEConfig], Field(max_length=200)]
    sae: str


class _Beside(BaseModel):
    page: Page | None = None


# -- folders -----------------------------------------------------------------------------------------------------------------------


def folder(kind: str) -> Path:
    """The folder of ``"sessions"`` or ``"autosave"``, made when it is missing.

    Raises:
        SessionError: it cannot be made.
    """
    path = user_data_path("lensplorer", appauthor=False) / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SessionError(f"The folder {str(path)!r} cannot be made: {error.strerror or error}.") from error
    return path


def _files(kind: str) -> list[Path]:
    """The session files of a folder, newest first."""
    return sorted((path for path in folder(kind).glob("*.json") if not path.name.endswith(_PAGE)), key=_age)


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0  # another process has taken it away


def _reserved(place: Path, stem: str) -> Path:
    """A new and empty file: of two that ask at once, each gets one of its own.

    Raises:
        SessionError: none can be made.
    """
    for suffix in ("", *(f"_{i}" for i in range(2, 1000))):
        path = place / f"{stem}{suffix}.json"
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        except OSError as error:
            raise SessionError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
        return path
    raise SessionError(f"{str(place)!r} has a thousand files named {stem!r}.")


def _make_newest(path: Path) -> None:
    """Date it after all others, though the clock may have gone back: the oldest are forgotten."""
    try:
        newest = max(other.stat().st_mtime_ns for other in path.parent.glob("*.json") if other != path)
        if newest >= path.stat().st_mtime_ns:
            os.utime(path, ns=(newest + 1_000_000, newest + 1_000_000))
    except (OSError, ValueError):
        return  # it is alone; or another process has taken one away


# -- writing -----------------------------------------------------------------------------------------------------------------------


def save(explorer: Explorer) -> Path:
    """Save the session and the page to a new file in the user's data folder.

    Raises:
        SessionError: it cannot be written.
    """
    path = _reserved(folder("sessions"), time.strftime("%Y-%m-%d_%H-%M-%S"))
    try:
        _write(explorer, path)
    except SessionError:
        path.unlink(missing_ok=True)
        raise
    return path


def page_state(explorer: Explorer) -> dict[str, Any]:
    """What is on screen beside the session, as plain data."""
    interventions = explorer.session.interventions if explorer.session is not None else ()
    return {
        "state": {name: getattr(explorer.state, name) for name in _Shown.model_fields},
        "settings": {panel: dict(values) for panel, values in explorer.settings.items()},
        "open": None if explorer.state.open is None else list(explorer.state.open),
        "saes": explorer.saes.needed(interventions),
        "sae": explorer.saes.chosen,
    }


def autosave(explorer: Explorer, key: str) -> None:
    """Keep the page under its tab's key.

    Raises:
        SessionError: it is no key of a tab, or the file cannot be written.
    """
    check_key(key)
    _write(explorer, folder("autosave") / f"{key}.json")


def _write(explorer: Explorer, path: Path) -> None:
    write_session(path, session_content(explorer.need_session()) | {"page": page_state(explorer)})
    _make_newest(path)


# -- a tab's own file --------------------------------------------------------------------------------------------------------------


def autosaved(key: str) -> Path | None:
    """The autosave of a tab, if there is one.

    Raises:
        SessionError: it is no key of a tab.
    """
    check_key(key)
    path = folder("autosave") / f"{key}.json"
    return path if path.exists() else None


def copied(key: str, to: str) -> Path | None:
    """A copy of one tab's autosave for another, if there is one.

    Raises:
        SessionError: one is no key of a tab, or the copy cannot be written.
    """
    check_key(to)
    path = autosaved(key)
    if path is None:
        return None
    copy = path.with_name(f"{to}.json")
    try:
        shutil.copyfile(path, copy)
        if path.with_suffix(_PAGE).exists():
            shutil.copyfile(path.with_suffix(_PAGE), copy.with_suffix(_PAGE))
    except OSError as error:
        copy.unlink(missing_ok=True)
        raise SessionError(f"{str(copy)!r} cannot be written: {error.strerror or error}.") from error
    return copy


def hold(key: str) -> IO[bytes] | None:
    """Hold a tab's key against other pages, of this process and others, for as long as the file is open; None where another holds it.

    Where the system has no file locks, or the folder cannot be written, nothing is held.

    Raises:
        SessionError: it is no key of a tab, or there is no folder.
    """
    check_key(key)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return open(os.devnull, "rb")
    path = folder("autosave") / f"{key}.lock"
    while True:
        try:
            file = path.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            return open(os.devnull, "rb")
        if os.fstat(file.fileno()).st_nlink:  # else it has been forgotten in between
            return file
        file.close()


def forget_old(*, keep: str = "") -> None:
    """Keep no more than the newest autosaves, and that of the tab ``keep``; no more than the newest of those that did not come back; and nothing that
    a page left which was killed while it saved.
    """
    files = [path for path in _files("autosave") if path.stem != keep]
    for old in (
        *[path for path in files if _ASIDE not in path.name][_MOST_AUTOSAVES:],
        *[path for path in files if _ASIDE in path.name][_MOST_ASIDE:],
    ):
        _forget(old, old.with_suffix(_PAGE), old.with_suffix(".lock"))
    for lock in folder("autosave").glob("*.lock"):
        if not lock.with_suffix(".json").exists():
            _forget(lock)
    for half in folder("autosave").glob(".*.tmp"):
        _forget(half)


def _forget(*paths: Path) -> None:
    """Take the files of a tab away, unless a page holds its key."""
    held, key = None, paths[0].name.lstrip(".").split(".")[0]
    try:
        if re.fullmatch(_KEY, key):
            held = hold(key)
            if held is None:
                return
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError:
        return  # the folder cannot be written
    finally:
        if held is not None:
            held.close()


def set_aside(path: Path, *, copy: bool = False) -> str:
    """Give an autosave that did not come back a name that no page writes to; a sentence that says where it is.

    ``copy``: leave one under its own name too.
    """
    try:
        aside = _reserved(path.parent, f"{path.stem}{_ASIDE}{time.strftime('%Y-%m-%d_%H-%M-%S')}")
        if copy:
            shutil.copyfile(path, aside)
        else:
            os.replace(path, aside)
            if path.with_suffix(_PAGE).exists():
                os.replace(path.with_suffix(_PAGE), aside.with_suffix(_PAGE))
        _make_newest(aside)
    except (OSError, SessionError) as error:
        return f"It could not be given another name: {error}"
    return f"It is kept as {str(aside)!r}."


def check_key(key: str) -> None:
    """
    Raises:
        SessionError: it is no key of a tab.
    """
    if not re.fullmatch(_KEY, key):
        raise SessionError("That is not the key of a page.")


# -- reading -----------------------------------------------------------------------------------------------------------------------


def listed() -> list[dict[str, Any]]:
    """The saved sessions and autosaves, newest first: name, kind, time, model, number of prompts. What cannot be opened is left out."""
    files = [(path, kind) for kind in ("sessions", "autosave") for path in _files(kind)]
    rows: list[dict[str, Any]] = []
    for path, kind in sorted(files, key=lambda item: _age(item[0])):
        if len(rows) == _MOST_LISTED:
            break
        try:
            model, prompts = summary(path)
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        except (OSError, LensplorerError):
            continue
        rows.append({"name": path.stem, "kind": kind, "time": when, "model": model, "prompts": prompts})
    return rows


def open_saved(explorer: Explorer, kind: str, name: str) -> None:
    """Take up a saved session, with its model.

    Raises:
        SessionError: there is no such file, or it is damaged. It stays where it is, and the page as it was.
    """
    if kind not in ("sessions", "autosave") or not re.fullmatch(r"[\w-]{1,80}", name):
        raise SessionError(f"There is no saved session {name!r}.")
    _open(explorer, folder(kind) / f"{name}.json", own=False)


def resume(explorer: Explorer, path: Path) -> None:
    """Take up a page's own autosave, with its model. If it does not come back it is set aside, which is told, and the page starts with its first
    prompt.
    """
    try:
        _open(explorer, path, own=True)
    except SessionError as error:
        explorer.tell(f"Not resumed: {error} {set_aside(path)}", kind="error")
        explorer.start_loading(explorer.options.model)


def _open(explorer: Explorer, path: Path, *, own: bool) -> None:
    """Load the model that a session file names, then take up the file.

    Raises:
        SessionError: the file is damaged, or another model is being loaded.
    """
    (model, _), page = summary(path), _read_page(explorer, path)

    def tell(text: str, *, copy: bool = False) -> None:
        explorer.tell(f"{text} {set_aside(path, copy=copy)}" if own else text, kind="error")

    def take_up(session: Session) -> None:
        try:
            missing = _take_up(explorer, session, path, page)
            if missing:
                tell(f"Resumed without {'; '.join(missing)}", copy=True)
            return
        except LensplorerError as error:
            said = str(error)
        except Exception as error:  # whatever a file does, the page starts
            logger.exception("%s was not taken up", path)
            said = f"{str(path)!r} is damaged ({type(error).__name__})."
        tell(f"Not resumed: {said}")
        if not session.ids:
            explorer.set_prompt(explorer.options.prompt)

    def start_over(text: str) -> None:
        if own:
            tell(f"Not resumed: {text}")
            explorer.start_loading(explorer.options.model)

    if explorer.session is not None and model_info(explorer.session.model).name == model:
        take_up(explorer.session)
    else:
        explorer.start_loading(model, otherwise=start_over)
        explorer.resume = take_up


def _read_page(explorer: Explorer, path: Path) -> Page | None:
    """What was on screen, checked; None where the file does not say.

    Raises:
        SessionError: it is damaged, or names a view, panel or control that does not exist.
    """
    page, beside = parsed(read_file(path), _Beside, path).page, path.with_suffix(_PAGE)
    try:
        if page is None and beside.exists():
            page = parsed(read_bytes(beside, max_bytes=MAX_BYTES), Page, beside)
        if page is not None:
            for name in (*page.settings, *(page.open or ())):
                _check_name("panel", name, PANELS)
            _check_name("view", page.state.view, explorer.views)
            for panel, values in page.settings.items():
                page.settings[panel] = {name: PANELS[panel].control(name).typed(value) for name, value in values.items()}
    except LensplorerError as error:
        raise SessionError(f"The page in {str(path)!r} is damaged: {error}") from error
    return page


def _check_name(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise SessionError(f"There is no {what} {name!r}.{did_you_mean(name, known)}")


def _take_up(explorer: Explorer, session: Session, path: Path, page: Page | None) -> list[str]:
    """All or nothing: what can fail is done first. Then the session, the SAEs, and what is on screen.

    Returns:
        Why SAEs of the page are missing that the session does without.

    Raises:
        LensplorerError: it does not come back. Nothing has changed.
    """
    saes, missing = explorer.saes.ready(page.saes) if page is not None else ([], [])
    try:
        state, sampling = read_session(path, session.model, saes=[*explorer.saes.loaded.values(), *(sae for sae, _ in saes)])
    except SessionError as error:
        raise SessionError(" ".join([str(error), *missing])) from error
    if not state.prompt.ids:
        raise SessionError(f"The session in {str(path)!r} has no tokens.")
    session.take_up(state, sampling)
    if page is not None:
        explorer.saes.take(saes)
        explorer.state.param.update(**page.state.model_dump(), open=page.open)
        explorer.settings = page.settings
        if page.sae in explorer.saes.loaded:
            explorer.saes.chosen = page.sae
    return missing


# -- links -------------------------------------------------------------------------------------------------------------------------


def link(explorer: Explorer) -> str:
    """The query string that brings model, prompt, view and cursor back. Tokens that the text would not give again go as ids."""
    session = explorer.need_session()
    query: dict[str, str] = {"model": model_info(session.model).name}
    again = Session(session.model, session.text).ids if session.text else ()
    if again == session.ids:
        query["prompt"] = session.text
    else:
        query["ids"] = ",".join(map(str, session.ids))
    query["view"] = explorer.state.view
    if session.state.cursor is not None:
        query["cursor"] = str(session.state.cursor)
    return "?" + urlencode(query)


def follow_link(explorer: Explorer, query: Mapping[str, str], *, kept: Path | None = None) -> bool:
    """Have the next model's session start as a link says; whether it says anything about the prompt, view or cursor.

    What is wrong in a link is told on the page, which starts all the same. ``kept``: the tab's autosave, which is then set aside.
    """
    if not {"prompt", "ids", "view", "cursor"} & set(query):
        return False

    def take_up(session: Session) -> None:
        try:
            _check_name("view", query.get("view") or explorer.state.view, explorer.views)
            ids, cursor = _numbers("ids", query.get("ids", "")), _numbers("cursor", query.get("cursor", ""))
            if ids:
                session.set_prompt(ids)
            else:
                explorer.set_prompt(query.get("prompt") or explorer.options.prompt)
            explorer.state.view = query.get("view") or explorer.state.view
            if cursor:
                session.move_cursor(to=cursor[0])
        except LensplorerError as error:
            if not session.ids:
                explorer.set_prompt(explorer.options.prompt)
            before = f" What this tab showed before: {set_aside(kept)}" if kept is not None else ""
            explorer.tell(f"The link is damaged: {error}{before}", kind="error")

    explorer.resume = take_up
    return True


def _numbers(name: str, text: str) -> list[int]:
    """
    Raises:
        SessionError: it is no list of numbers of up to nine digits.
    """
    if not text:
        return []
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise SessionError(f"{name} should be numbers with commas between them, got {text[:40]!r}.")
    return [int(piece) for piece in text.split(",")]
