"""Sampling you can see: how a model's logits become one token, stage by stage.

``params`` says what is wanted, ``pipeline`` does it, ``distribution`` shows it, ``constraints`` restricts it, ``stopping`` ends it, and
``steps`` gives it to a ``Session``.
"""
