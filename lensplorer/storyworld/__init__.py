"""The built-in models: a toy world with planted phenomena, two small decoders that live in it, and their SAEs.

Importing this module costs nothing: the weights are read by `lensplorer.load_model`, the grammar by those who want it.
"""

from __future__ import annotations

from pathlib import Path

MODEL_NAMES = ("storyworld", "storyworld-mini")
DATA = Path(__file__).parent / "data"


def model_path(name: str) -> Path:
    """The Hugging Face format folder of a built-in model.

    Raises `ValueError` naming the known models when `name` is not one of `MODEL_NAMES`.

    >>> model_path("storyworld").name
    'storyworld'
    """
    if name not in MODEL_NAMES:
        raise ValueError(f"no built-in model is called {name!r}; there are {' and '.join(MODEL_NAMES)}")
    return DATA / name


__all__ = ["DATA", "MODEL_NAMES", "model_path"]
