"""What a person chooses about sampling: one immutable value, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from lensplorer.errors import SamplingError, check_unicode, did_you_mean

#: A smaller temperature divides logits into overflow; 0 is greedy and divides nothing.
MIN_TEMPERATURE = 1e-6
_LARGEST = 2**63 - 1  # of a whole number: what a tensor can hold
_MOST_STOPS, _LONGEST_STOP = 100, 10_000  # stop sequences, and characters of each: all are looked for at every step


@dataclass(frozen=True)
class DecodingParams:
    """The knobs of the pipeline; the defaults are the preset ``"balanced"``.

    >>> DecodingParams(temperature=0).is_greedy, DecodingParams.preset("creative", seed=3).seed
    (True, 3)

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens, and what ties with the last of them; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose mass reaches it; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
        repetition_penalty: positive logits of tokens seen before, in the prompt too, are divided by it, negative ones multiplied; 1 is none.
        presence_penalty: taken once from the logit of each token of the completion; -2 to 2.
        frequency_penalty: taken from the logit of each token of the completion as often as it stands there; -2 to 2.
        greedy: take the most likely token whatever the temperature.
        seed: the same seed gives the same tokens; None draws afresh each time.
        stop_sequences: generation stops when the completion's text contains one of them.

    Raises:
        SamplingError: a value is out of range, or a stop sequence is empty.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.8
    min_p: float = 0.0
    repetition_penalty: float = 1.05
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    greedy: bool = False
    seed: int | None = 0
    stop_sequences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not (self.temperature == 0 or self.temperature >= MIN_TEMPERATURE):
            raise SamplingError(f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE:g}, got {self.temperature:g}.")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if not 0 <= value <= 1:
                raise SamplingError(f"{name} must be between 0 and 1, got {value:g}.")
        if not self.repetition_penalty > 0:
            raise SamplingError(f"repetition_penalty must be above 0 (1 is none), got {self.repetition_penalty:g}.")
        for name, value in (("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)):
            if not -2 <= value <= 2:
                raise SamplingError(f"{name} must be between -2 and 2, got {value:g}.")
        _check_whole("top_k", self.top_k, "a whole number of tokens, or 0 for all")
        if self.seed is not None:
            _check_whole("seed", self.seed, "a whole number from 0 on, or None")
        if not isinstance(self.greedy, bool):
            raise SamplingError(f"greedy must be True or False, got {self.greedy!r}.")
        object.__setattr__(self, "stop_sequences", _stop_sequences(self.stop_sequences))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken and nothing is drawn."""
        return self.greedy or self.temperature == 0

    @property
    def preset_name(self) -> str:
        """The preset that these are, whatever the seed and the stop sequences, or ``"custom"``."""
        plain = replace(self, seed=0, stop_sequences=())
        return next((name for name, preset in PRESETS.items() if preset == plain), "custom")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DecodingParams:
        """The parameters called ``name`` (``"custom"``: the defaults), with ``changes``.

        Raises:
            SamplingError: there is no such preset, or a change is out of range or unknown.
        """
        if name not in (*PRESETS, "custom"):
            raise SamplingError(f"Unknown preset {name!r}.{did_you_mean(name, (*PRESETS, 'custom'))}")
        return cls.from_dict({**PRESETS.get(name, cls()).to_dict(), **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecodingParams:
        """The parameters in a mapping such as a JSON file holds; what is absent has its default.

        Raises:
            SamplingError: a key is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise SamplingError(f"Unknown decoding parameter {key!r}.{did_you_mean(key, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; ``from_dict`` takes them back."""
        return {**asdict(self), "stop_sequences": list(self.stop_sequences)}


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SamplingError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _check_whole(name: str, value: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise SamplingError(f"{name} must be {expected}, got {str(value)[:40]}.")


def _stop_sequences(value: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) or not all(isinstance(sequence, str) for sequence in value):
        raise SamplingError(f"stop_sequences takes a list of texts, got {value!r}.")
    value = tuple(value)
    if len(value) > _MOST_STOPS:
        raise SamplingError(f"There are {len(value)} stop sequences, and {_MOST_STOPS} are the most.")
    for number, sequence in enumerate(value, start=1):
        if not sequence:
            raise SamplingError(f"Stop sequence {number} is empty: it would stop at once. Leave it out.")
        if len(sequence) > _LONGEST_STOP:
            raise SamplingError(f"Stop sequence {number} has {len(sequence)} characters, and {_LONGEST_STOP} are the most.")
        check_unicode(sequence, f"Stop sequence {number}", SamplingError)
    return value


#: name → parameters. ``"custom"`` is the name of anything else.
PRESETS: dict[str, DecodingParams] = {
    "greedy": DecodingParams(temperature=0.0, top_p=1.0, repetition_penalty=1.0),
    "balanced": DecodingParams(),
    "reliable": DecodingParams(temperature=0.3, top_p=0.7),
    "creative": DecodingParams(temperature=1.1, top_p=0.95, presence_penalty=0.3),
}
