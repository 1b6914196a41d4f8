"""The page: a person's hands on a ``Session``, and pictures of what the analyses say.

``options`` (command line) → ``explorer`` (applies commands, takes snapshots; no browser in it) → ``worker`` (one thread: commands in order, then
one snapshot of the newest state) → ``page`` (Panel). Only ``page``, ``shell`` and ``timeline`` know of Panel and Bokeh.
"""
