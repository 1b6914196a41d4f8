"""Questions as values: an analysis with its arguments, which can be answered, remembered, and written down as Python.

Panels ask through these, so that "copy as Python" is what was asked and not a second account of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lensplorer.interventions.saving import to_dict
from lensplorer.models import model_info
from lensplorer.trace import Trace, run_trace

if TYPE_CHECKING:
    from lensplorer.dashboard.explorer import Explorer


class Source:
    """Something a question is about. Frozen and hashable, so that an answer can be kept under it."""

    def value(self, explorer: Explorer) -> Any:
        """The thing itself."""
        raise NotImplementedError

    def code(self, script: Script) -> str:
        """A Python expression for it, in ``script``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Here(Source):
    """The current prompt's run, under the interventions there are; with ``gradients``, run again to keep the graph."""

    gradients: bool = False

    def value(self, explorer: Explorer) -> Trace:
        session = explorer.need_session()
        if not self.gradients:
            return session.trace()
        return run_trace(session.model, list(session.ids), interventions=session.interventions, gradients=True)

    def code(self, script: Script) -> str:
        session = script.explorer.need_session()
        more = (", gradients=True" if self.gradients else "") + script.interventions(session.interventions)
        return script.define("trace", f"lp.run_trace(model, {list(session.ids)}{more})", comment=session.text)


@dataclass(frozen=True)
class Window(Source):
    """One position of the current run alone, at a cost that does not grow with the prompt. Scripts read the whole run."""

    position: int

    def value(self, explorer: Explorer) -> Trace:
        return explorer.need_session().window(self.position)


@dataclass(frozen=True)
class Plain(Source):
    """The current prompt's run without interventions."""

    def value(self, explorer: Explorer) -> Trace:
        return explorer.need_session().plain_trace()

    def code(self, script: Script) -> str:
        return script.define("plain", f"lp.run_trace(model, {list(script.explorer.need_session().ids)})")


@dataclass(frozen=True)
class OtherPrompt(Source):
    """Another prompt's run under the same interventions."""

    ids: tuple[int, ...]

    def value(self, explorer: Explorer) -> Trace:
        session = explorer.need_session()
        return session.tree.trace(session.tree.extend(session.tree.root, self.ids))

    def code(self, script: Script) -> str:
        session = script.explorer.need_session()
        more = script.interventions(session.interventions)
        return script.define("other", f"lp.run_trace(model, {list(self.ids)}{more})", comment=str(session.model.tokenizer.decode(list(self.ids))))


@dataclass(frozen=True)
class OtherModel(Source):
    """Another model's run over the same text."""

    name: str

    def value(self, explorer: Explorer) -> Trace:
        return run_trace(explorer.load(self.name), explorer.need_session().text)

    def code(self, script: Script) -> str:
        return script.define("other", f"lp.run_trace(lp.load_model({self.name!r}), {script.explorer.need_session().text!r})")


@dataclass(frozen=True)
class Dictionary(Source):
    """A loaded SAE, by its name."""

    name: str

    def value(self, explorer: Explorer) -> Any:
        return explorer.saes.loaded[self.name]

    def code(self, script: Script) -> str:
        return script.define("sae", script.explorer.saes.code[self.name])


@dataclass(frozen=True)
class Call(Source):
    """An analysis with its arguments; among them may be sources, other calls too, also inside tuples."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def value(self, explorer: Explorer) -> Any:
        return self.function(*_values(self.arguments, explorer), **{name: _values(value, explorer) for name, value in self.options})

    def code(self, script: Script) -> str:
        given = [script.expression(value) for value in self.arguments]
        given += [f"{name}={script.expression(value)}" for name, value in self.options]
        return script.define("result", f"lp.{self.function.__name__}({', '.join(given)})")


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    """The question ``function(*arguments, **options)``."""
    return Call(function, arguments, tuple(options.items()))


def _values(value: Any, explorer: Explorer) -> Any:
    if isinstance(value, Source):
        return explorer.answer(value)
    return tuple(_values(item, explorer) for item in value) if isinstance(value, tuple) else value


@dataclass
class Script:
    """Python that asks the same questions with nothing but ``import lensplorer as lp``."""

    explorer: Explorer
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def define(self, hint: str, expression: str, *, comment: str = "") -> str:
        """The name of a variable that holds ``expression``: one for each expression."""
        if expression not in self.names:
            taken = sum(name.rstrip("0123456789_") == hint for name in self.names.values())
            self.names[expression] = f"{hint}_{taken + 1}" if taken else hint
            shown = " ".join(comment.split())
            self.lines.append(f"{self.names[expression]} = {expression}" + (f"  # {shown[:60]}" if shown else ""))
        return self.names[expression]

    def expression(self, value: Any) -> str:
        if isinstance(value, Source):
            return value.code(self)
        if isinstance(value, tuple):
            return "(" + "".join(f"{self.expression(item)}, " for item in value).rstrip() + ")"
        known = type(value).__module__.startswith("lensplorer.")
        return f"lp.{value!r}" if known else repr(value)

    def interventions(self, several: tuple[Any, ...]) -> str:
        """The argument of a run under these."""
        if not several:
            return ""
        self.define("interventions", "[" + ", ".join(self.intervention(one) for one in several) + "]")
        return ", interventions=interventions"

    def intervention(self, intervention: Any) -> str:
        """How it was made on this page; one out of a file is read back as it stands there."""
        made = self.explorer.made.get(intervention)
        if made is not None:
            code, sae = made
            return code.replace("SAE", Dictionary(sae).code(self)) if sae else code
        self.define_import("from lensplorer.interventions.saving import from_dict")
        return f"from_dict({to_dict(intervention)!r})"

    def define_import(self, line: str) -> None:
        if line not in self.lines:
            self.lines.insert(0, line)


def python(explorer: Explorer, calls: list[Call], title: str) -> str:
    """A script that asks ``calls`` and draws the first answer."""
    script = Script(explorer)
    info = model_info(explorer.need_session().model)
    dtype = "" if info.dtype == "float32" else f", dtype={info.dtype!r}"
    revision = "" if info.revision is None else f", revision={info.revision!r}"
    model = f"lp.load_model({info.name!r}{dtype}{revision}, backend={info.backend!r}, processing={info.processing!r})"
    script.define("model", model)
    results = [question.code(script) for question in calls]
    imports = [line for line in script.lines if line.startswith("from ")]
    body = [line for line in script.lines if not line.startswith("from ")]
    head = " ".join(title.split()).replace('"""', "'''").replace("\\", "/")
    return "\n".join([f'"""{head}"""', "", "import lensplorer as lp", *imports, "", *body, "", *(f"print({name})" for name in results), ""])
