"""Session files: written whole or not at all, and read with every check before anything changes.

A file is a stranger's. Its types, sizes and references are checked here, once, so that nothing behind has to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue, ValidationError

from lensplorer.config import MOST_PROMPTS
from lensplorer.errors import FormatError, LensplorerError, SessionError
from lensplorer.formats.files import read_bytes, write_bytes
from lensplorer.interventions.sessions import checked, read_interventions, saved_interventions
from lensplorer.models import LensModel, model_info
from lensplorer.sampling.constraints import compile_constraint
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.steps import ChosenToken, SamplingSettings
from lensplorer.session import PromptState, State

if TYPE_CHECKING:
    from lensplorer.session import Session

FORMAT_VERSION = 1
#: The largest session file. A token that was sampled takes about 500 bytes of it, one that was given about 20.
MAX_BYTES = 2**28


class Strict(BaseModel):
    """A part of a file: exactly these keys, exactly these types, no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


_Ids = Annotated[tuple[int, ...], FailFast()]
_Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Model(Strict):
    name: str
    revision: str | None = None
    d_vocab: int


class _Prompt(Strict):
    key: _Count
    ids: _Ids
    n_given: _Count
    origin: _Ids
    parent: _Count | None = None
    forked_at: _Count = 0
    choices: Annotated[tuple[ChosenToken, ...], FailFast()] = ()


class _State(Strict):
    prompts: Annotated[tuple[_Prompt, ...], FailFast(), Field(min_length=1, max_length=MOST_PROMPTS)]
    current: _Count
    cursor: _Count | None
    interventions: Annotated[tuple[dict[str, JsonValue], ...], FailFast()] = ()


class _Sampling(Strict):
    decoding: DecodingParams = DecodingParams()
    constraint: Constraint | None = None
    model_on: bool = True


class _File(Strict):
    format: str
    version: int
    model: _Model
    state: _State
    sampling: _Sampling = _Sampling()
    page: Any = None  # what a dashboard keeps beside it, which reads it itself


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format: Literal["lensplorer session"]
    version: Any = None


class _Summary(BaseModel):
    model_config = ConfigDict(strict=True)

    model: _Model
    state: dict[str, Any]


_Part = TypeVar("_Part", bound=BaseModel)


# -- writing -----------------------------------------------------------------------------------------------------------------------


def session_content(session: Session) -> dict[str, Any]:
    """A session as plain data.

    Raises:
        SessionError: an intervention is not one of ``lensplorer.interventions``.
    """
    info = model_info(session.model)
    return {
        "format": "lensplorer session",
        "version": FORMAT_VERSION,
        "model": {"name": info.name, "revision": info.revision, "d_vocab": int(session.model.cfg.d_vocab)},
        "state": {**asdict(replace(session.state, interventions=())), "interventions": saved_interventions(session.interventions)},
        "sampling": session._sampling_content(),
    }


def write_session(path: Path, content: dict[str, Any]) -> None:
    """Write a session file: a reader sees the old file or the new one, and only its owner may read it.

    Raises:
        SessionError: the folder is missing or cannot be written, the disk is full, or the content could not be read again.
    """
    try:
        data = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False).encode()
    except ValueError as error:  # half of a surrogate pair, or a number that is not finite
        raise SessionError(f"{str(path)!r} cannot be written: the session holds what no file can ({error}).") from error
    if len(data) > MAX_BYTES:
        raise SessionError(f"{str(path)!r} is not written: it would take {len(data) / 2**20:.0f} MiB, and {MAX_BYTES / 2**20:.0f} are the most.")
    try:
        write_bytes(path, data, private=True)
    except FormatError as error:
        raise SessionError(str(error)) from error


# -- reading -----------------------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> bytes:
    """What a session file holds, once it is known to be one of this version.

    Raises:
        SessionError: it cannot be read, is too large, is no session, or is of another version.
    """
    try:
        data = read_bytes(path, max_bytes=MAX_BYTES)
    except FormatError as error:
        raise SessionError(f"The session file {error}") from error
    try:
        header = _Header.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        said = f"it is not valid JSON ({found['msg']})" if found["type"] == "json_invalid" else "it does not say that it is one"
        raise SessionError(f"{str(path)!r} is not a session file: {said}.") from error
    if header.version != FORMAT_VERSION:
        raise SessionError(f"{str(path)!r} has format version {header.version!r:.40}; this lensplorer reads version {FORMAT_VERSION}.")
    return data


def parsed(data: bytes, part: type[_Part], path: Path) -> _Part:
    """A file's content as ``part``.

    Raises:
        SessionError: it is damaged; the message says where.
    """
    try:
        return part.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, found["loc"])) or "its content"
        raise _damaged(path, f"{place[:200]}: {found['msg'][:1].lower()}{found['msg'][1:]}") from error
    except LensplorerError as error:  # a part that checks itself
        raise _damaged(path, str(error).removesuffix(".")) from error


def _damaged(path: Path, what: str) -> SessionError:
    return SessionError(f"The session file {str(path)!r} is damaged: {what}.")


def summary(path: Path) -> tuple[str, int]:
    """The name of a file's model and how many prompts it has, without a look at the rest.

    Raises:
        SessionError: as ``read_file``; or it is damaged.
    """
    found = parsed(read_file(path), _Summary, path)
    prompts = found.state.get("prompts")
    if not isinstance(prompts, list) or not prompts:
        raise _damaged(path, "it has no prompts")
    return found.model.name, len(prompts)


def read_session(path: Path, model: LensModel, *, saes: Iterable[Any] = ()) -> tuple[State, SamplingSettings]:
    """The state and the sampling settings in a session file, checked against ``model``.

    Raises:
        SessionError: the file cannot be read, is no session, is damaged, or is of another model; or it changes features of an SAE that is not given.

    Cost: as the first run under its interventions, where they borrow from other runs.
    """
    file = parsed(read_file(path), _File, path)
    info, d_vocab = model_info(model), int(model.cfg.d_vocab)
    if file.model.d_vocab != d_vocab or file.model.name != info.name:
        raise SessionError(f"The session is of model {file.model.name!r}, and the model loaded is {info.name!r}: load that one first.")
    prompts = tuple(PromptState(**dict(prompt)) for prompt in file.state.prompts)
    state = State(prompts, file.state.current, file.state.cursor)
    for wrong in _wrong(state, d_vocab, info.n_ctx):
        raise _damaged(path, wrong)
    constraint = file.sampling.constraint
    try:
        if constraint is not None:
            compiled = compile_constraint(constraint, model.tokenizer, d_vocab)
            for prompt in prompts:
                compiled.fits(prompt.ids[prompt.n_given :])
        interventions = checked(model, read_interventions(file.state.interventions, saes=saes))
    except SessionError:
        raise
    except LensplorerError as error:
        raise SessionError(f"The session file {str(path)!r} does not fit: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:  # RecursionError is a RuntimeError
        raise _damaged(path, f"its constraint or an intervention fails with {type(error).__name__}") from error
    return State(prompts, state.current, state.cursor, interventions), (file.sampling.decoding, constraint, file.sampling.model_on)


def _wrong(state: State, d_vocab: int, n_ctx: int) -> Iterator[str]:
    """What no walk of a session leads to."""
    if state.current >= len(state.prompts):
        yield f"prompt {state.current} is the current one, and there are {len(state.prompts)}"
        return
    if state.cursor is not None and state.cursor >= len(state.prompt.ids):
        yield f"the cursor is at {state.cursor} of {len(state.prompt.ids)} tokens"
    if len({prompt.key for prompt in state.prompts}) < len(state.prompts):
        yield "two prompts have the same key"
    for prompt in state.prompts:
        for wrong in _wrong_prompt(prompt, d_vocab, n_ctx):
            yield f"prompt {prompt.key} {wrong}"


def _wrong_prompt(prompt: PromptState, d_vocab: int, n_ctx: int) -> Iterator[str]:
    for ids in (prompt.ids, prompt.origin):
        if len(ids) > n_ctx:
            yield f"has {len(ids)} tokens, and the model's context is {n_ctx}"
        outside = next((token_id for token_id in ids if not 0 <= token_id < d_vocab), None)
        if outside is not None:
            yield f"has token id {outside}, outside the vocabulary of {d_vocab}"
    if prompt.n_given > len(prompt.ids):
        yield f"was given {prompt.n_given} of its {len(prompt.ids)} tokens"
    if prompt.parent is not None and prompt.parent >= prompt.key:  # a branch is younger than its parent, which may be gone: no circle
        yield f"is a branch of {prompt.parent}, which is not older"
    if prompt.forked_at > n_ctx:
        yield f"was branched at {prompt.forked_at}, and the model's context is {n_ctx}"
    last = 0
    for choice in prompt.choices:
        if not last < choice.position < len(prompt.ids):
            yield f"tells how token {choice.position} was chosen, after {last} and of {len(prompt.ids)}"
            return
        last = choice.position
        if choice.how not in ("sampled", "greedy", "forced") or not 0 <= choice.n_prompt <= choice.position or not 0 <= (choice.draw or 0.0) < 1:
            yield f"tells a choice of token {choice.position} that nobody can make"
            return
