"""The one table of commands: key, label, action. The keyboard, the buttons and the help sheet are all made from it.

A command with a ``run`` changes the explorer, on the worker thread, in the order in which commands were given. One without lives in the
browser alone (help, opening the editor). What the browser sends is checked here: it is a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensplorer.errors import LensplorerError, SessionError, did_you_mean

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer

Arguments = Mapping[str, Any]
Run = Callable[["Explorer", Arguments], None]


@dataclass(frozen=True)
class Command:
    """One thing that a person can do.

    Attributes:
        name: what the browser sends.
        keys: as the browser spells them ("ctrl+j", "?"); the first is shown in tooltips. None: reached by clicking alone.
        label: what it does, in words; the tooltip and the help sheet.
        group: heading in the help sheet; empty leaves it out of the sheet.
        run: what it does; None for what the browser does by itself.
        place: where its button stands: "strip", "prompts", "candidates" or "header"; empty for none.
        icon: text of its button.
    """

    name: str
    keys: tuple[str, ...]
    label: str
    group: str
    run: Run | None = None
    place: str = ""
    icon: str = ""


def perform(explorer: Explorer, name: str, arguments: Arguments) -> None:
    """Do the command called ``name``.

    Raises:
        LensplorerError: there is no such command, an argument is bad, or the command does not apply now.
    """
    command = BY_NAME.get(name)
    if command is None or command.run is None:
        raise LensplorerError(f"There is no command {name!r}.{did_you_mean(name, BY_NAME)}")
    command.run(explorer, arguments)


# -- arguments -------------------------------------------------------------------------------------------------------------------


def _integer(arguments: Arguments, name: str) -> int:
    value = arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or int(value) != value:
        raise LensplorerError(f"{name} should be a whole number, got {value!r}.")
    return int(value)


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise LensplorerError(f"{name} should be text, got {value!r}.")
    return value


# -- candidates ------------------------------------------------------------------------------------------------------------------


def _select(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.selected = max(0, min(_integer(arguments, "index"), len(explorer.candidates().token_id) - 1))


def _move_selection(by: int) -> Run:
    def move(explorer: Explorer, arguments: Arguments) -> None:
        _select(explorer, {"index": explorer.state.selected + by})

    return move


def _append(explorer: Explorer, arguments: Arguments) -> None:
    """Append what was clicked (``token_id``), or the selected row of the candidates as they are when this command's turn comes.

    With the cursor inside the prompt, the token after the cursor is chosen anew: a walk along the text where it agrees, a branch where not.
    """
    session = explorer.need_session()
    if "token_id" in arguments:
        token_id = _integer(arguments, "token_id")
    else:
        token_id = explorer.selected_token()
    cursor = session.state.cursor
    if cursor is None or cursor == len(session.ids) - 1:
        session.append(token_id)
        if cursor is not None:
            session.move_cursor(to=-1)
    elif session.ids[cursor + 1] == token_id:
        session.move_cursor(1)
    else:
        session.choose(cursor + 1, token_id)
    explorer.state.selected = 0


def _sample(explorer: Explorer, arguments: Arguments) -> None:
    session = explorer.need_session()
    session.sample_step()
    if session.state.cursor is not None:
        session.move_cursor(to=-1)
    explorer.state.selected = 0


def _play(explorer: Explorer, arguments: Arguments) -> None:
    explorer.need_session()
    explorer.state.playing = not explorer.state.playing


def _search(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.search = _text(arguments, "text")[:100]
    explorer.state.selected = 0


def _toggle_z(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.z_scores = not explorer.state.z_scores


# -- prompts ---------------------------------------------------------------------------------------------------------------------


def _on_session(method: str, *values: Any, selects: bool = True) -> Run:
    """The session's ``method``; the selection goes back to the top when the candidates change with it."""

    def run(explorer: Explorer, arguments: Arguments) -> None:
        getattr(explorer.need_session(), method)(*values)
        if selects:
            explorer.state.selected = 0

    return run


def _go_to_prompt(explorer: Explorer, arguments: Arguments) -> None:
    explorer.need_session().go_to_prompt(_integer(arguments, "index"))
    explorer.state.selected = 0


def _set_prompt(explorer: Explorer, arguments: Arguments) -> None:
    explorer.set_prompt(_text(arguments, "text"), truncate=arguments.get("truncate") is True)


def _forget_editor(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.editor = None


def _save(explorer: Explorer, arguments: Arguments) -> None:
    explorer.tell(f"Saved to {explorer.save()}.")


# -- cursor ----------------------------------------------------------------------------------------------------------------------


def _move_cursor(by: int = 0, *, to: int | None = None, words: int = 0) -> Run:
    def move(explorer: Explorer, arguments: Arguments) -> None:
        session = explorer.need_session()
        if to is not None:
            session.move_cursor(to=to)
        elif words:
            session.move_cursor(words=words)
        else:
            session.move_cursor(by)
        explorer.state.selected = 0

    return move


def _put_cursor(explorer: Explorer, arguments: Arguments) -> None:
    session = explorer.need_session()
    to = _integer(arguments, "to")
    if to < 0:
        raise SessionError(f"Position {to} is outside the prompt.")
    session.move_cursor(to=min(to, len(session.ids) - 1))  # the prompt may have become shorter since the click
    explorer.state.selected = 0


def _toggle_cursor(explorer: Explorer, arguments: Arguments) -> None:
    session = explorer.need_session()
    if session.state.cursor is None:
        session.move_cursor(to=-1)
    else:
        session.hide_cursor()
    explorer.state.selected = 0


# -- views -----------------------------------------------------------------------------------------------------------------------


def _move_view(by: int) -> Run:
    def move(explorer: Explorer, arguments: Arguments) -> None:
        names = list(explorer.views)
        explorer.state.view = names[(names.index(explorer.state.view) + by) % len(names)]

    return move


def _go_to_view(explorer: Explorer, arguments: Arguments) -> None:
    names = list(explorer.views)
    index = int(arguments["key"]) - 1 if str(arguments.get("key", "")).isdecimal() else _integer(arguments, "index")
    if not 0 <= index < len(names):
        raise LensplorerError(f"There is no view {index + 1}: expected 1 to {len(names)}.")
    explorer.state.view = names[index]


def _move_layer(by: int) -> Run:
    def move(explorer: Explorer, arguments: Arguments) -> None:
        explorer.state.layer = max(0, min(explorer.n_layers, explorer.layer + by))

    return move


def _set_theme(explorer: Explorer, arguments: Arguments) -> None:
    theme = _text(arguments, "theme")
    if theme not in explorer.state.param.theme.objects:
        raise LensplorerError(f"Unknown theme {theme!r}.{did_you_mean(theme, explorer.state.param.theme.objects)}")
    explorer.state.theme = theme


def _load_model(explorer: Explorer, arguments: Arguments) -> None:
    explorer.start_loading(_text(arguments, "model").strip())


CANDIDATES, PROMPTS, CURSOR, VIEWS, PAGE = "Candidates", "Prompts and branches", "Token cursor", "Views", "Page"

COMMANDS = (
    Command("select_next", ("ArrowDown", "j"), "Next candidate", CANDIDATES, _move_selection(1)),
    Command("select_previous", ("ArrowUp", "k"), "Previous candidate", CANDIDATES, _move_selection(-1)),
    Command("append", ("ArrowRight", "l"), "Append the candidate; at the cursor, take it there", CANDIDATES, _append, "candidates", "append"),
    Command("pop", ("ArrowLeft", "h"), "Remove the last token", CANDIDATES, _on_session("pop"), "candidates", "remove"),
    Command("sample", (" ",), "One sampled step", CANDIDATES, _sample, "candidates", "sample"),
    Command("play", ("g",), "Play sampled steps, and pause", CANDIDATES, _play, "candidates", "play"),
    Command("z_scores", ("z",), "Z-scores on or off", CANDIDATES, _toggle_z, "candidates", "z"),
    Command("find", ("/",), "Search candidates", CANDIDATES),
    Command("edit", ("i",), "Write or paste a prompt", PROMPTS, None, "prompts", "edit"),
    Command("branch", ("d",), "New prompt from this one", PROMPTS, _on_session("branch", selects=False), "prompts", "branch"),
    Command("remove", ("a",), "Remove this prompt", PROMPTS, _on_session("remove"), "prompts", "remove"),
    Command("next_prompt", ("w",), "Next prompt", PROMPTS, _on_session("next_prompt")),
    Command("previous_prompt", ("s",), "Previous prompt", PROMPTS, _on_session("previous_prompt")),
    Command("undo", ("u",), "Undo", PROMPTS, _on_session("undo"), "prompts", "undo"),
    Command("redo", ("shift+u",), "Redo", PROMPTS, _on_session("redo"), "prompts", "redo"),
    Command("reset", ("ctrl+r",), "Reset this prompt to what it was", PROMPTS, _on_session("reset"), "prompts", "reset"),
    Command("save", ("x",), "Save the session to a file", PROMPTS, _save, "prompts", "save"),
    Command("toggle_cursor", ("c",), "Token cursor on or off", CURSOR, _toggle_cursor),
    Command("cursor_next", ("ctrl+j",), "Next token", CURSOR, _move_cursor(1)),
    Command("cursor_previous", ("ctrl+k",), "Previous token", CURSOR, _move_cursor(-1)),
    Command("cursor_next_word", ("alt+w", "ctrl+w"), "Next word", CURSOR, _move_cursor(words=1)),
    Command("cursor_previous_word", ("alt+b", "ctrl+b"), "Previous word", CURSOR, _move_cursor(words=-1)),
    Command("cursor_first", ("ctrl+0",), "First token", CURSOR, _move_cursor(to=0)),
    Command("cursor_last", ("ctrl+$",), "Last token", CURSOR, _move_cursor(to=-1)),
    Command("next_view", ("e",), "Next view", VIEWS, _move_view(1)),
    Command("previous_view", ("shift+e",), "Previous view", VIEWS, _move_view(-1)),
    Command("go_to_view", tuple("123456789"), "View by number", VIEWS, _go_to_view),
    Command("next_layer", ("n",), "Next layer, in views of one layer", VIEWS, _move_layer(1)),
    Command("previous_layer", ("b",), "Previous layer", VIEWS, _move_layer(-1)),
    Command("choose_model", ("m",), "Load another model", PAGE),
    Command("toggle_theme", ("t",), "Light or dark", PAGE, None, "header", "theme"),
    Command("help", ("?",), "Show the keys", PAGE, None, "header", "?"),
    # reached by clicking and typing alone
    Command("select", (), "Select this candidate", "", _select),
    Command("search", (), "Search candidates", "", _search),
    Command("put_cursor", (), "Put the cursor here", "", _put_cursor),
    Command("go_to_prompt", (), "Go to this prompt", "", _go_to_prompt),
    Command("set_prompt", (), "Take this prompt", "", _set_prompt),
    Command("forget_editor", (), "Close the editor", "", _forget_editor),
    Command("set_theme", (), "Take this theme", "", _set_theme),
    Command("load_model", (), "Load this model", "", _load_model),
)
BY_NAME = {command.name: command for command in COMMANDS}


def command_table() -> list[dict[str, Any]]:
    """The table as the browser reads it."""
    return [
        {
            "name": command.name,
            "keys": list(command.keys),
            "label": command.label,
            "group": command.group,
            "remote": command.run is not None,
            "place": command.place,
            "icon": command.icon,
        }
        for command in COMMANDS
    ]
