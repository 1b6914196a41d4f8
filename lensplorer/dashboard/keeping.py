"""What is kept of a page: saved sessions, an autosave that a reload or a crash resumes from, and a link.

A saved session is two files: the session's own (see ``Session.save``), and beside it ``.page.json`` with what was on screen.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from platformdirs import user_data_path

from lensplorer.dashboard.panels import PANELS
from lensplorer.errors import LensplorerError, SessionError
from lensplorer.models import model_info
from lensplorer.session import Session, write_atomically

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

logger = logging.getLogger(__name__)

_KEPT = ("view", "layer", "z_scores", "theme", "layer_display")
_PAGE = ".page.json"
_MOST_AUTOSAVES = 40
_MOST_LISTED = 30


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


def save(explorer: Explorer) -> Path:
    """Save the session and the page to new files in the user's data folder."""
    stem = time.strftime("%Y-%m-%d_%H-%M-%S")
    names = (f"{stem}{suffix}" for suffix in ("", *(f"_{i}" for i in range(2, 1000))))
    place = folder("sessions")
    return _write(explorer, next(place / f"{name}.json" for name in names if not (place / f"{name}.json").exists()))


def page_state(explorer: Explorer) -> str:
    """What is on screen beside the session, as JSON."""
    return json.dumps(
        {
            "state": {name: getattr(explorer.state, name) for name in _KEPT},
            "settings": explorer.settings,
            "open": explorer.state.open,
            "saes": [explorer.saes.tables[name] for name in explorer.saes.loaded],
            "sae": explorer.saes.chosen,
        }
    )


def autosave(explorer: Explorer, key: str) -> None:
    """Keep the page under its tab's key."""
    check_key(key)
    _write(explorer, folder("autosave") / f"{key}.json")


def autosaved(key: str) -> Path | None:
    """The autosave of a tab, if there is one.

    Raises:
        SessionError: it is no key of a tab.
    """
    check_key(key)
    path = folder("autosave") / f"{key}.json"
    return path if path.exists() else None


def forget_old() -> None:
    """Keep no more than the newest autosaves."""
    files = sorted((path for path in folder("autosave").glob("*.json") if not path.name.endswith(_PAGE)), key=_age)
    for path in files[_MOST_AUTOSAVES:]:
        path.unlink(missing_ok=True)
        path.with_suffix(_PAGE).unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0  # another process has taken it away


def check_key(key: str) -> None:
    """
    Raises:
        SessionError: it is no key of a tab.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        raise SessionError("That is not the key of a page.")


def _write(explorer: Explorer, path: Path) -> Path:
    explorer.need_session().save(path)
    write_atomically(path.with_suffix(_PAGE), page_state(explorer))
    return path


def listed() -> list[dict[str, Any]]:
    """The saved sessions and autosaves, newest first: name, kind, time, model, first words."""
    files = [(path, kind) for kind in ("sessions", "autosave") for path in folder(kind).glob("*.json") if not path.name.endswith(_PAGE)]
    rows = []
    for path, kind in sorted(files, key=lambda item: _age(item[0]))[:_MOST_LISTED]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows.append(
                {
                    "name": path.stem,
                    "kind": kind,
                    "time": time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)),
                    "model": str(content["model"]["name"]),
                    "prompts": len(content["state"]["prompts"]),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged or gone: it cannot be opened, so it is not offered
    return rows


def open_saved(explorer: Explorer, kind: str, name: str) -> None:
    """Take up a saved session, with its model.

    Raises:
        SessionError: there is no such file, or it is damaged.
    """
    if kind not in ("sessions", "autosave") or not re.fullmatch(r"[\w-]{1,80}", name):
        raise SessionError(f"There is no saved session {name!r}.")
    resume(explorer, folder(kind) / f"{name}.json")


def resume(explorer: Explorer, path: Path) -> None:
    """Load the model that a session file names, then the session, then what was on screen.

    Raises:
        SessionError: the file cannot be read.
    """
    try:
        model = str(json.loads(path.read_text(encoding="utf-8"))["model"]["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SessionError(f"The session file {path.name!r} cannot be read: {type(error).__name__}.") from error

    def take_up(session: Session) -> None:
        try:
            _restore_page(explorer, path.with_suffix(_PAGE))
            session.load(path, saes=explorer.saes.loaded.values())
        except LensplorerError as error:
            if not session.ids:
                explorer.set_prompt(explorer.options.prompt)
            explorer.tell(f"Not resumed: {error}", kind="error")

    if explorer.session is not None and model_info(explorer.session.model).name == model:
        take_up(explorer.session)
    else:
        explorer.resume = take_up
        explorer.start_loading(model)


def _restore_page(explorer: Explorer, path: Path) -> None:
    from lensplorer.config import SAEConfig

    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the session itself is what matters
    try:
        explorer.state.param.update(**{name: page["state"][name] for name in _KEPT if name in page["state"]})
        explorer.settings = {
            name: {control: PANELS[name].control(control).read(explorer, value) for control, value in values.items()}
            for name, values in page["settings"].items()
            if name in PANELS
        }
        explorer.state.open = [name for name in page["open"] if name in PANELS]
        tables = [SAEConfig(**table) for table in page["saes"]]
    except (KeyError, TypeError, ValueError, AttributeError, LensplorerError) as error:
        logger.warning("What was on screen is not restored from %s: %s", path, error)
        return
    if tables:
        explorer.saes.load_now(tables)
        explorer.saes.chosen = page["sae"] if page.get("sae") in explorer.saes.loaded else explorer.saes.chosen


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


def follow_link(explorer: Explorer, query: Mapping[str, str]) -> bool:
    """Have the next model's session start as a link says; whether it says anything about the prompt, view or cursor.

    What is wrong in a link is told on the page, which starts all the same.
    """
    if not {"prompt", "ids", "view", "cursor"} & set(query):
        return False

    def take_up(session: Session) -> None:
        try:
            if query.get("ids"):
                session.set_prompt([int(piece) for piece in query["ids"].split(",")])
            else:
                explorer.set_prompt(query.get("prompt") or explorer.options.prompt)
            if query.get("view"):
                if query["view"] not in explorer.views:
                    raise SessionError(f"The link names a view {query['view']!r} that does not exist.")
                explorer.state.view = query["view"]
            if query.get("cursor"):
                session.move_cursor(to=int(query["cursor"]))
        except (LensplorerError, ValueError) as error:
            if not session.ids:
                explorer.set_prompt(explorer.options.prompt)
            explorer.tell(f"The link is damaged: {error}", kind="error")

    explorer.resume = take_up
    return True
