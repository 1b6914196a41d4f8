"""What a person is doing: prompts, branches, a cursor, undo. No page in it, and no model run until something is asked.

The whole state is one immutable ``State``; every action makes the next one, so undo is a pointer and saving is writing it down. The model
runs when ``trace()`` is called, through a ``TokenTree``: a step costs one token and going back costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensplorer.arguments import expects
from lensplorer.config import MOST_PROMPTS
from lensplorer.errors import PromptError, SessionError
from lensplorer.interventions.sessions import InterventionSession, checked
from lensplorer.models import LensModel, model_info
from lensplorer.running import Intervention, Reads
from lensplorer.sampling.steps import ChosenToken, SamplingSession, SamplingSettings, holding
from lensplorer.tokens import Prompt, token_texts
from lensplorer.trace import Trace, prompt_ids

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from lensplorer.nodes import Node
    from lensplorer.stepping import TokenTree

MAX_PROMPTS = 9
_MAX_UNDO = 1000


@dataclass(frozen=True)
class PromptState:
    """One prompt of the list: the ids fed, and where they came from.

    Attributes:
        key: a number that stays with this prompt; its name on the page.
        ids: the tokens fed, BOS included.
        n_given: how many of them were given as the prompt; the rest is completion.
        origin: the ids that ``reset`` returns to.
        parent: the key of the prompt it was branched from, or None.
        forked_at: how many tokens it shared with its parent when it was branched.
        choices: how tokens of the completion were chosen, by rising position.
    """

    key: int
    ids: tuple[int, ...]
    n_given: int
    origin: tuple[int, ...]
    parent: int | None = None
    forked_at: int = 0
    choices: tuple[ChosenToken, ...] = ()


@dataclass(frozen=True)
class State:
    """Everything that undo restores.

    Attributes:
        prompts: the list of prompts.
        current: index of the one on screen.
        cursor: position of the token cursor, or None for "the last token".
        interventions: changes under which the model runs.
    """

    prompts: tuple[PromptState, ...]
    current: int = 0
    cursor: int | None = None
    interventions: tuple[Intervention, ...] = ()

    @property
    def prompt(self) -> PromptState:
        return self.prompts[self.current]


@expects
class Session(InterventionSession, SamplingSession):
    """A walk through a model's continuations.

    >>> import lensplorer as lp
    >>> session = lp.Session(lp.load_model("storyworld"))
    >>> session.set_prompt("Once upon a")
    >>> session.append(" time")
    >>> session.text, session.branch(), session.pop(), session.undo(), session.text
    ('Once upon a time', None, None, None, 'Once upon a time')

    Args:
        model: from ``load_model``.
        prompt: the first prompt; None starts with the BOS token alone, or refuses to run until there is a prompt.
        max_prompts: how many prompts the list may hold.
        reads: what each trace caches (see ``run_trace``).
        interventions: changes under which every trace runs; ``intervene`` adds more.
        max_bytes: bound of what is kept for going back and forth; with interventions, half of it for the plain model's run. None: half of the memory
            that is free now. A prompt that would not fit is refused before it runs.

    Errors leave the session as it was.
    """

    def __init__(
        self,
        model: LensModel,
        prompt: Prompt | None = None,
        *,
        max_prompts: int = MAX_PROMPTS,
        reads: Reads = None,
        interventions: Iterable[Intervention] = (),
        max_bytes: int | None = None,
    ) -> None:
        if not 1 <= max_prompts <= MOST_PROMPTS:
            raise SessionError(f"max_prompts must be at least 1 and at most {MOST_PROMPTS}, got {max_prompts}.")
        super().__init__()
        self.model = model
        self.max_prompts = max_prompts
        self.state = State((PromptState(0, (), 0, ()),), interventions=checked(model, interventions))
        self._keep_trees(reads, max_bytes)
        self._last: tuple[TokenTree, tuple[int, ...], Node] | None = None  # the node of the prompt looked at last
        if prompt is not None:
            ids = self._encode(prompt)
            self.state = replace(self.state, prompts=(PromptState(0, ids, len(ids), ids),))
        self._undo: list[State] = []
        self._redo: list[State] = []

    # -- what is -----------------------------------------------------------------------------------------------------------------

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of the current prompt, as fed."""
        return self.state.prompt.ids

    @property
    def token_texts(self) -> list[str]:
        """Exact text of each token."""
        return token_texts(self.model.tokenizer, self.ids)

    @property
    def text(self) -> str:
        """The current prompt as text, without the BOS token in front."""
        ids = list(self.ids)
        if ids[:1] == [self.model.tokenizer.bos_token_id]:
            ids = ids[1:]
        return str(self.model.tokenizer.decode(ids))

    @property
    def position(self) -> int:
        """Where the analyses look: the cursor, or the last token."""
        return self.state.cursor if self.state.cursor is not None else len(self.ids) - 1

    @property
    def unrun(self) -> int:
        """How many tokens of the current prompt the model has yet to run over."""
        if self._last is not None and self._last[0] is self.tree and self._last[1] is self.ids:
            return 0 if self.tree.holds(self._last[2]) else self.tree.missing(self.ids)
        return self.tree.missing(self.ids)

    def trace(self) -> Trace:
        """The trace of the current prompt, equal to a fresh run; only tokens not seen before are run.

        Raises:
            PromptError: the prompt is empty.
            SessionError: the model is switched off.
        """
        return self.tree.trace(self._node())

    def window(self, position: int) -> Trace:
        """One position of ``trace()`` alone, at a cost that does not grow with the prompt (see ``TokenTree.window``)."""
        return self.tree.window(self._node(position + 1))

    def along(self, analysis: Callable[..., xr.Dataset], *, last: int | None = None, first: int = 0) -> dict[str, np.ndarray]:
        """An analysis of each position from ``first`` on, of which only new ones are computed (see ``TokenTree.along``)."""
        return self.tree.along(self._node(), analysis, last=last, first=first)

    def _node(self, n: int | None = None) -> Node:
        """The node of the current prompt, or of its first ``n`` tokens."""
        self._require_model()
        if not self.ids:
            raise PromptError("The prompt is empty: give at least one token of text.")
        ids, tree = self.ids, self.tree
        if self._last is None or self._last[0] is not tree or self._last[1] is not ids:
            before = self._last[2] if self._last is not None and self._last[0] is tree and ids[:-1] == self._last[1] else None
            node = tree.extend(tree.root, ids) if before is None else tree.extend(before, ids[-1])
            self._last = tree, ids, node
        return tree.ancestor(self._last[2], len(ids) if n is None else min(n, len(ids)))

    def _require_room(self, ids: Sequence[int]) -> None:
        """Refuse a prompt that the memory cannot hold, before anything changes.

        Raises:
            PromptError: saying what it would take and what is free.
        """
        if self.model_on:
            self.tree.require_room(ids)

    # -- prompts -----------------------------------------------------------------------------------------------------------------

    def set_prompt(self, prompt: Prompt) -> None:
        """Put a new prompt (text, ids or chat messages) in place of the current one.

        Raises:
            PromptError: it is empty, too long, or cannot be encoded.
        """
        ids = self._encode(prompt)
        self._change_prompt(ids=ids, n_given=len(ids), origin=ids)

    def branch(self) -> None:
        """Add a copy of the current prompt to the list and go to it.

        Raises:
            SessionError: the list is full.
        """
        state = self.state
        if len(state.prompts) >= self.max_prompts:
            raise SessionError(f"There are {len(state.prompts)} prompts, and {self.max_prompts} is the most: remove one first.")
        source = state.prompt
        copy = replace(source, key=max(p.key for p in state.prompts) + 1, parent=source.key, forked_at=len(source.ids))
        at = state.current + 1
        self._become(replace(state, prompts=(*state.prompts[:at], copy, *state.prompts[at:]), current=at))

    def remove(self) -> None:
        """Take the current prompt off the list.

        Raises:
            SessionError: it is the only one.
        """
        state = self.state
        if len(state.prompts) == 1:
            raise SessionError("This is the only prompt: it cannot be removed. Reset it, or set another text.")
        prompts = state.prompts[: state.current] + state.prompts[state.current + 1 :]
        self._become(replace(state, prompts=prompts, current=min(state.current, len(prompts) - 1), cursor=None))

    def next_prompt(self) -> None:
        """Go to the next prompt of the list, round and round."""
        self.go_to_prompt((self.state.current + 1) % len(self.state.prompts))

    def previous_prompt(self) -> None:
        """Go to the previous prompt of the list, round and round."""
        self.go_to_prompt((self.state.current - 1) % len(self.state.prompts))

    def go_to_prompt(self, index: int) -> None:
        """Go to the prompt at ``index`` of the list."""
        if not 0 <= index < len(self.state.prompts):
            raise SessionError(f"There is no prompt {index}: expected 0 to {len(self.state.prompts) - 1}.")
        if index != self.state.current:
            self._become(replace(self.state, current=index, cursor=self._clipped(self.state.cursor, self.state.prompts[index])))

    def reset(self) -> None:
        """Return the current prompt to what it was when it was set."""
        self._change_prompt(ids=self.state.prompt.origin, n_given=len(self.state.prompt.origin))

    # -- tokens ------------------------------------------------------------------------------------------------------------------

    def append(self, token: str | int | None = None) -> None:
        """Append one token: an id, a text that is exactly one token, or None for the most likely one that the constraint admits.

        Raises:
            SamplingError: it violates the constraint.
            TokenError: the text is not exactly one token, or the id is outside the vocabulary.
            PromptError: the context is full.
        """
        from lensplorer.tokens import resolve_token

        if token is None:
            token = self._most_likely()
        self._append([resolve_token(self.model.tokenizer, token, d_vocab=int(self.model.cfg.d_vocab))])

    def append_text(self, text: str) -> None:
        """Append all the tokens of ``text``, without a BOS token.

        Raises:
            PromptError: it is empty, or does not fit the context.
            SamplingError: it violates the constraint.
        """
        self._append(prompt_ids(self.model, text, prepend_bos=False))

    def pop(self, n: int = 1) -> None:
        """Take the last ``n`` tokens off. The first token always stays.

        Raises:
            SessionError: there are not so many.
        """
        if not 1 <= n < len(self.ids):
            raise SessionError(f"{n} tokens cannot be taken off a prompt of {len(self.ids)}: the first one stays.")
        ids = self.ids[:-n]
        self._change_prompt(ids=ids, n_given=min(self.state.prompt.n_given, len(ids)))

    def choose(self, position: int, token: str | int) -> None:
        """Take another token at ``position``: what follows is cut off, on a branch when the list has room for one.

        Raises:
            TokenError, SamplingError: as ``append``.
            SessionError: the position is outside the prompt or its first token.
        """
        from lensplorer.tokens import resolve_token

        if not 1 <= position < len(self.ids):
            raise SessionError(f"Position {position} cannot be changed: expected 1 to {len(self.ids) - 1}.")
        token_id = resolve_token(self.model.tokenizer, token, d_vocab=int(self.model.cfg.d_vocab))
        source, state = self.state.prompt, self.state
        cut = replace(source, ids=source.ids[:position], n_given=min(source.n_given, position))
        changed = self._forced(replace(cut, choices=holding(source, cut)), [token_id])
        if len(state.prompts) < self.max_prompts:
            branch = replace(changed, key=max(p.key for p in state.prompts) + 1, parent=source.key, forked_at=position)
            at = state.current + 1
            self._become(replace(state, prompts=(*state.prompts[:at], branch, *state.prompts[at:]), current=at, cursor=None))
        else:
            self._become(self._replaced(changed))

    # -- cursor ------------------------------------------------------------------------------------------------------------------

    def move_cursor(self, by: int | None = None, *, to: int | None = None, words: int = 0) -> None:
        """Move the token cursor ``by`` tokens, ``to`` a position (-1 is the last), or by ``words``; it stops at the ends.

        Raises:
            SessionError: nothing or more than one of the three is given, or ``to`` is outside the prompt.
        """
        n = len(self.ids)
        if (by is not None) + (to is not None) + (words != 0) != 1:
            raise SessionError("move_cursor takes one of: a number of tokens, to=position, words=number.")
        if not n:
            raise SessionError("There is no token to put the cursor on: the prompt is empty.")
        if to is not None:
            if not -n <= to < n:
                raise SessionError(f"Position {to} is outside the prompt of {n} tokens.")
            target = to % n
        elif words:
            target = self._word(self.position, words)
        else:
            target = self.position + (by or 0)
        self.state = replace(self.state, cursor=max(0, min(n - 1, target)))

    def hide_cursor(self) -> None:
        """Switch the cursor off: the analyses look at the last token again."""
        self.state = replace(self.state, cursor=None)

    def _word(self, position: int, words: int) -> int:
        texts = self.token_texts
        starts = [i for i, text in enumerate(texts) if i == 0 or text[:1].isspace() or texts[i - 1][-1:].isspace()]
        if words > 0:
            later = [start for start in starts if start > position]
            return later[min(words, len(later)) - 1] if later else len(texts) - 1
        earlier = [start for start in reversed(starts) if start < position]
        return earlier[min(-words, len(earlier)) - 1] if earlier else 0

    # -- undo --------------------------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take the last change back.

        Raises:
            SessionError: there is none.
        """
        if not self._undo:
            raise SessionError("There is nothing to undo.")
        self._redo.append(self.state)
        self.state = self._undo.pop()

    def redo(self) -> None:
        """Do the change again that was undone last.

        Raises:
            SessionError: there is none.
        """
        if not self._redo:
            raise SessionError("There is nothing to redo.")
        self._undo.append(self.state)
        self.state = self._redo.pop()

    # -- files -------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to one JSON file, atomically: a reader sees the old file or the new one.

        Raises:
            SessionError: the file cannot be written, or an intervention is not one of ``lensplorer.interventions``.
        """
        from lensplorer.sessionfile import session_content, write_session

        write_session(Path(path), session_content(self))

    def load(self, path: str | os.PathLike[str], *, saes: Iterable[Any] = ()) -> None:
        """Take up a saved session; the change can be undone.

        Args:
            path: the file.
            saes: the SAEs whose features its interventions change.

        Raises:
            SessionError: the file cannot be read, is no session, is damaged, is of another model, or changes features of an SAE that was not given.
                The session is as it was.
        """
        from lensplorer.sessionfile import read_session

        self.take_up(*read_session(Path(path), self.model, saes=saes))

    def take_up(self, state: State, sampling: SamplingSettings) -> None:
        """Go on from what ``read_session`` found; the change can be undone."""
        self._become(state)
        self._take_up_sampling(sampling)

    # -- inside ------------------------------------------------------------------------------------------------------------------

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        ids = tuple(prompt_ids(self.model, prompt))
        self._require_room(ids)
        return ids

    def _append(self, new: Sequence[int]) -> None:
        self._check_fits(len(self.ids) + len(new))
        self._require_room((*self.ids, *new))
        self._become(self._replaced(self._forced(self.state.prompt, new)))

    def _check_fits(self, n: int) -> None:
        info = model_info(self.model)
        if n > info.n_ctx:
            raise PromptError(f"That would be {n} tokens, and the context of {info.name!r} is {info.n_ctx}.")

    def _change_prompt(self, **changes: Any) -> None:
        prompt = replace(self.state.prompt, **changes)
        self._become(self._replaced(replace(prompt, choices=holding(self.state.prompt, prompt))))

    def _replaced(self, prompt: PromptState) -> State:
        """The state with ``prompt`` in place of the current one."""
        state = self.state
        prompts = (*state.prompts[: state.current], prompt, *state.prompts[state.current + 1 :])
        return replace(state, prompts=prompts, cursor=self._clipped(state.cursor, prompt))

    def _become(self, state: State) -> None:
        if state == self.state:
            return
        self._undo.append(self.state)
        del self._undo[:-_MAX_UNDO]
        self._redo.clear()
        self.state = state

    @staticmethod
    def _clipped(cursor: int | None, prompt: PromptState) -> int | None:
        return None if cursor is None or not prompt.ids else min(cursor, len(prompt.ids) - 1)
