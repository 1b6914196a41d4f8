"""What the page shows, beside the session: which view, which layer, what is searched for, what went wrong. No widget in it."""

from __future__ import annotations

import param


class PageState(param.Parameterized):
    """The page's own state; the prompts, branches and cursor are the session's."""

    view = param.String(default="probability", doc="Name of the view that colours the token strip.")
    layer = param.Integer(default=-1, doc="Layer of the views that show one: 0 is the embedding, -1 none chosen yet.")
    z_scores = param.Boolean(default=True, doc="Whether the candidates show z-scores.")
    search = param.String(default="", doc="Only candidates whose text contains this.")
    selected = param.Integer(default=0, bounds=(0, None), doc="Index of the selected row of the candidates.")
    theme = param.Selector(default="dark", objects=["dark", "light"])
    loading = param.String(default="", doc="Name of the model that is being loaded; empty when none is.")
    playing = param.Boolean(default=False, doc="Whether sampled steps are taken one after another.")
    message = param.Dict(default=None, allow_None=True, doc="What to tell the person: {kind: 'error' | 'info', text}; None when there is nothing.")
    editor = param.Dict(
        default=None, allow_None=True, doc="A prompt that was refused: {text, error, can_truncate}; None when the last one was accepted."
    )
    model_error = param.String(default="", doc="Why the last model asked for did not load; empty when it did.")
    layer_display = param.Selector(default="", objects=["", "probability", "logit", "correlation"], doc="What the candidates show layer by layer.")
    feature = param.Integer(default=None, allow_None=True, bounds=(0, None), doc="The SAE feature that the feature view shows; None: the strongest.")
    aim = param.Integer(default=None, allow_None=True, doc="Id of the candidate pointed at, what attributions are about; None: the selected one.")
    open = param.List(default=None, allow_None=True, item_type=str, doc="Names of the open panels, in their order; None: the browser's choice.")
    shown = param.List(default=[], item_type=str, doc="Names of the panels on screen: only these are computed.")
    download = param.Dict(default=None, allow_None=True, doc="What the last command made for the browser to keep: {name, kind, data} or {clipboard}.")
    saved = param.List(default=[], doc="Saved sessions, newest first, as the page lists them.")
    acknowledged = param.Integer(default=0, doc="Sequence number of the browser's last command that was applied.")
