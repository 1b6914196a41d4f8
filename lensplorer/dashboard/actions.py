"""The one table of commands: key, label, action. The keyboard, the buttons and the help sheet are all made from it.

A command with a ``run`` changes the explorer, on the worker thread, in the order in which commands were given. One without lives in the
browser alone (help, opening the editor). What the browser sends is checked here: it is a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensplorer.dashboard import keeping
from lensplorer.dashboard.costs import key_of
from lensplorer.dashboard.exports import exported, script_of
from lensplorer.dashboard.panels import PANELS
from lensplorer.dashboard.panels.base import Panel
from lensplorer.dashboard.panels.interventions import make, scaled
from lensplorer.errors import LensplorerError, SessionError, did_you_mean
from lensplorer.sampling.params import DecodingParams

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
    explorer.tell(f"Saved to {keeping.save(explorer)}.")


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


def _next_display(explorer: Explorer, arguments: Arguments) -> None:
    """The candidates' next layer display; in the feature view, the next SAE."""
    if explorer.state.view == "features":
        explorer.saes.step(1)
        return
    displays = explorer.state.param.layer_display.objects
    explorer.state.layer_display = displays[(displays.index(explorer.state.layer_display) + 1) % len(displays)]


# -- panels ----------------------------------------------------------------------------------------------------------------------


def _panel(arguments: Arguments) -> Panel:
    name = _text(arguments, "panel")
    if name not in PANELS:
        raise LensplorerError(f"There is no panel {name!r}.{did_you_mean(name, PANELS)}")
    return PANELS[name]


def _names(arguments: Arguments) -> list[str]:
    names = arguments.get("names")
    if not isinstance(names, list) or len(names) > len(PANELS):
        raise LensplorerError(f"names should be a list of panels, got {names!r}.")
    return [_panel({"panel": name}).name for name in names]


def _show_panels(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.shown = _names(arguments)


def _arrange(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.open = _names(arguments)


def _set_control(explorer: Explorer, arguments: Arguments) -> None:
    panel = _panel(arguments)
    control = panel.control(_text(arguments, "name"))
    explorer.settings.setdefault(panel.name, {})[control.name] = control.read(explorer, arguments.get("value"))


def _run_panel(explorer: Explorer, arguments: Arguments) -> None:
    """Let the panel run in spite of its cost; without a name, each that waits for it, and the text if its run was stopped."""
    explorer.go_on()
    panels = [_panel(arguments)] if "panel" in arguments else [PANELS[name] for name in explorer.state.shown]
    for panel in panels:
        explorer.costs.grant(key_of(panel.name, panel.settings(explorer)))


def _stop(explorer: Explorer, arguments: Arguments) -> None:
    """What runs was stopped when this was sent; a play ends here."""
    explorer.state.playing = False
    explorer.costs.revoke()


def _copy_python(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.download = {"clipboard": script_of(explorer, _panel(arguments).name)}
    explorer.tell("Copied as Python.")


def _export(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.download = exported(explorer, _panel(arguments).name, _text(arguments, "format"))
    explorer.tell(f"Made {explorer.state.download['name']}.")


def _aim(explorer: Explorer, arguments: Arguments) -> None:
    if arguments.get("token_id") is None:
        explorer.state.aim = None
        return
    token_id = _integer(arguments, "token_id")
    if not 0 <= token_id < explorer.d_vocab:
        raise LensplorerError(f"There is no token {token_id}: the vocabulary has {explorer.d_vocab}.")
    explorer.state.aim = token_id


# -- decoding --------------------------------------------------------------------------------------------------------------------


def _set_decoding(explorer: Explorer, arguments: Arguments) -> None:
    """One knob, or a preset, which keeps the seed."""
    session = explorer.need_session()
    name, value = _text(arguments, "name"), arguments.get("value")
    if name == "preset":
        session.decoding = DecodingParams.preset(str(value), seed=session.decoding.seed, stop_sequences=session.decoding.stop_sequences)
        return
    if name == "stop_sequences":
        value = tuple(line.encode().decode("unicode_escape") if "\\" in line else line for line in str(value).split("|") if line)
    elif name == "seed" and value in ("", None):
        value = None
    elif name != "greedy":
        try:
            value = int(value) if name in ("top_k", "seed") else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise LensplorerError(f"{name.replace('_', ' ')}: expected a number, got {value!r}.") from error
    session.decoding = DecodingParams.from_dict({**session.decoding.to_dict(), name: value})


def _constrain(explorer: Explorer, arguments: Arguments) -> None:
    """Restrict what comes from here on; an empty text lifts it."""
    from lensplorer.sampling.grammars import Constraint

    text = _text(arguments, "text")[:20_000]
    session = explorer.need_session()
    if not text.strip():
        session.constrain(None)
        return
    kind = _text(arguments, "kind")
    makers = {
        "choice": lambda: Constraint.multiple_choice([line for line in text.split("|") if line]),
        "regex": lambda: Constraint.regex(text),
        "grammar": lambda: Constraint.grammar(text),
        "json": lambda: Constraint.json_schema(text),
    }
    if kind not in makers:
        raise LensplorerError(f"Unknown constraint {kind!r}.{did_you_mean(kind, makers)}")
    session.constrain(makers[kind](), from_here=True)


def _toggle_model(explorer: Explorer, arguments: Arguments) -> None:
    session = explorer.need_session()
    session.model_on = not session.model_on
    explorer.state.playing = False
    explorer.forget_answers()


def _set_chat(explorer: Explorer, arguments: Arguments) -> None:
    explorer.set_chat(_text(arguments, "system"), _text(arguments, "user"))


# -- interventions and features --------------------------------------------------------------------------------------------------


def _intervene(explorer: Explorer, arguments: Arguments) -> None:
    """What the interventions panel's form describes."""
    explorer.intervene(*make(explorer, PANELS["interventions"].settings(explorer)))


def _scale_feature(explorer: Explorer, arguments: Arguments) -> None:
    factor = arguments.get("factor")
    if not isinstance(factor, (int, float)):
        raise LensplorerError(f"factor should be a number, got {factor!r}.")
    explorer.intervene(*scaled(explorer, _integer(arguments, "feature"), float(factor)))


def _remove_intervention(explorer: Explorer, arguments: Arguments) -> None:
    explorer.need_session().remove_intervention(_integer(arguments, "index"))


def _clear_interventions(explorer: Explorer, arguments: Arguments) -> None:
    explorer.need_session().interventions = ()


def _choose_feature(explorer: Explorer, arguments: Arguments) -> None:
    feature = None if arguments.get("feature") is None else _integer(arguments, "feature")
    if feature is not None:
        from lensplorer.saes.labels import check_feature

        explorer.saes.check(explorer.saes.chosen)
        check_feature(explorer.saes.loaded[explorer.saes.chosen], feature)
    explorer.state.feature = feature
    explorer.state.view = "features"


def _search_saes(explorer: Explorer, arguments: Arguments) -> None:
    explorer.saes.search(_text(arguments, "text"))


def _load_sae(explorer: Explorer, arguments: Arguments) -> None:
    from lensplorer.config import SAEConfig

    explorer.saes.start_loading([SAEConfig(release=_text(arguments, "release"), sae_id=_text(arguments, "sae_id"))])


def _use_sae(explorer: Explorer, arguments: Arguments) -> None:
    explorer.saes.choose(_text(arguments, "name"))


def _take_off_sae(explorer: Explorer, arguments: Arguments) -> None:
    explorer.saes.take_off(_text(arguments, "name"))


# -- page ------------------------------------------------------------------------------------------------------------------------


def _list_sessions(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.saved = keeping.listed()


def _open_session(explorer: Explorer, arguments: Arguments) -> None:
    keeping.open_saved(explorer, _text(arguments, "kind"), _text(arguments, "name"))


def _copy_link(explorer: Explorer, arguments: Arguments) -> None:
    explorer.state.download = {"link": keeping.link(explorer)}
    explorer.tell("Copied a link to this page.")


def _set_theme(explorer: Explorer, arguments: Arguments) -> None:
    theme = _text(arguments, "theme")
    if theme not in explorer.state.param.theme.objects:
        raise LensplorerError(f"Unknown theme {theme!r}.{did_you_mean(theme, explorer.state.param.theme.objects)}")
    explorer.state.theme = theme


def _load_model(explorer: Explorer, arguments: Arguments) -> None:
    explorer.start_loading(_text(arguments, "model").strip())


CANDIDATES, PROMPTS, CURSOR, VIEWS = "Candidates", "Prompts and branches", "Token cursor", "Views"
PANEL, PAGE = "Panels", "Page"

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
    Command("next_display", ("p",), "Next layer display of the candidates; in the feature view, next SAE", VIEWS, _next_display),
    Command("next_layer", ("n",), "Next layer, in views of one layer", VIEWS, _move_layer(1)),
    Command("previous_layer", ("b",), "Previous layer", VIEWS, _move_layer(-1)),
    Command("choose_panels", ("v",), "Choose the panels", PANEL, None, "header", "panels"),
    Command("run_panel", ("r",), "Run what waits because it is long", PANEL, _run_panel),
    Command("stop", (".",), "Stop what is running", PANEL, _stop),
    Command("maximise", ("shift+m",), "Maximise the panel under the pointer, and back", PANEL),
    Command("choose_sae", ("f",), "Choose SAEs", PAGE),
    Command("chat", ("shift+i",), "Write a chat: system and user prompt through the model's template", PROMPTS),
    Command("toggle_model", ("o",), "Switch the model off, to edit freely, or on", PAGE, _toggle_model),
    Command("open", ("shift+x",), "Open a saved session", PROMPTS, None, "prompts", "open"),
    Command("copy_link", ("y",), "Copy a link to this model, prompt, view and cursor", PAGE, _copy_link, "header", "link"),
    Command("toggle_rail", ("\\",), "Narrow or wide side bar", PAGE, None),
    Command("choose_model", ("m",), "Load another model", PAGE),
    Command("toggle_theme", ("t",), "Light or dark", PAGE, None, "header", "theme"),
    Command("tour", (), "The tour again", PAGE, None),
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
    Command("show_panels", (), "These panels are on screen", "", _show_panels),
    Command("arrange", (), "These panels are open, in this order", "", _arrange),
    Command("set_control", (), "Set a control of a panel", "", _set_control),
    Command("copy_python", (), "Copy as Python", "", _copy_python),
    Command("export", (), "Save the panel's figure or data", "", _export),
    Command("aim", (), "What attributions are about", "", _aim),
    Command("set_decoding", (), "Set a knob of sampling", "", _set_decoding),
    Command("constrain", (), "Restrict what is sampled", "", _constrain),
    Command("set_chat", (), "Take this chat", "", _set_chat),
    Command("intervene", (), "Apply the intervention of the form", "", _intervene),
    Command("scale_feature", (), "Scale this feature", "", _scale_feature),
    Command("remove_intervention", (), "Take this intervention off", "", _remove_intervention),
    Command("clear_interventions", (), "Take all interventions off", "", _clear_interventions),
    Command("choose_feature", (), "Show this feature", "", _choose_feature),
    Command("search_saes", (), "Search the SAEs", "", _search_saes),
    Command("load_sae", (), "Load this SAE", "", _load_sae),
    Command("use_sae", (), "Show this SAE's features", "", _use_sae),
    Command("take_off_sae", (), "Take this SAE off", "", _take_off_sae),
    Command("list_sessions", (), "List the saved sessions", "", _list_sessions),
    Command("open_session", (), "Open this session", "", _open_session),
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
