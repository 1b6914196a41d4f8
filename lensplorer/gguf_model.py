"""Models in one GGUF file (the format of llama.cpp), read by transformers and held to what the file says.

transformers passes in silence over settings and tensors that it does not know: the model would load and be another one. So the file's header
is read here as well. A setting that transformers leaves out is put into the configuration where its meaning is plain; any other
disagreement, and any tensor left over, refuses the file. The header is plain data: nothing in a GGUF file is run.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lensplorer.errors import ModelError, first_line

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}  # value type → struct format
_MOST_DIMENSIONS = 8

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_ENCODERS = re.compile(r"bert|t5|embedding|clip|wavtokenizer")

#: Setting of the file (without its architecture) → names that transformers' configurations give it; equal, or the file is refused.
_SAME: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "num_attention_heads"),
    "attention.value_length": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "use_parallel_residual": ("use_parallel_residual",),
    "logit_scale": ("logit_scale",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
#: As above, but the file's value is put into the configuration where they differ: weights of the wrong shape would still be refused.
_COMPLETED: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
#: Settings that change nothing with this value.
_NEUTRAL: dict[str, Any] = {"rope.scaling.type": "none", "rope.scaling.attn_factor": 1.0, "rope.scaling.factor": 1.0, "attention.causal": True}
_EPSILON = "attention.layer_norm_rms_epsilon or attention.layer_norm_epsilon"
_NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count", _EPSILON)
_IGNORED = {"tensor_data_layout"}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        architecture: llama.cpp's name, e.g. ``"llama"``, ``"qwen2"``.
        metadata: key → number or text; an array of numbers is a list, an array of texts its length.
        tensors: name → shape, as PyTorch writes it.
    """

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the architecture, without its name."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}


class _CutShort(Exception):
    """The file ends before what it announces."""


class _Damaged(Exception):
    """What the file holds is no GGUF."""


class _Reader:
    """Numbers and texts one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.data, self._forward(struct.calcsize(form)))
        return found

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self._forward(length)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"a value of type {kind}")
        element, count = self.numbers("<IQ")
        if element in _SCALARS:
            width = struct.calcsize(_SCALARS[element])
            start = self._forward(count * width)
            return list(struct.unpack_from(f"<{count}{_SCALARS[element][1]}", self.data, start))
        if element != _STRING:
            raise _Damaged(f"an array of type {element}")
        for _ in range(count):  # a vocabulary: each text is passed over
            self._forward(self.number("<Q"))
        return count

    def _forward(self, length: int) -> int:
        """Where the next ``length`` bytes begin."""
        start = self.at
        if start + length > len(self.data):
            raise _CutShort
        self.at = start + length
        return start


def read_header(path: Path, name: str) -> Header:
    """The header of a GGUF file; the tensors' data is not read, but is known to be there.

    Args:
        path: the file.
        name: what the user calls it, for messages.

    Raises:
        ModelError: it is no GGUF file, of an unknown version, damaged, cut short, or ``gguf`` is not installed.

    Cost: about 0.1 s, whatever the model's size.
    """
    sizes = _block_sizes(name)
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{name!r} is not a GGUF file: it does not begin with the letters GGUF. Fetch it again, or give another file.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data, name, sizes)
    except OSError as error:
        raise ModelError(f"The file {name!r} cannot be read: {error.strerror or error}.") from error
    except _CutShort as error:
        raise ModelError(f"The GGUF file {name!r} is cut short: it ends before what its header announces. Fetch it again.") from error
    except _Damaged as error:
        raise ModelError(f"The GGUF file {name!r} is damaged: its header has {error}. Fetch it again.") from error


def _block_sizes(name: str) -> dict[int, tuple[int, int]]:
    """Type of a tensor → (values, bytes) of one block."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise ModelError(f'{name!r} is a GGUF file, and these need gguf: pip install "lensplorer[gguf]".') from error
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


def _read(data: mmap.mmap, name: str, sizes: dict[int, tuple[int, int]]) -> Header:
    reader = _Reader(data)
    reader.at = len(_MAGIC)
    version = reader.number("<I")
    if version not in _VERSIONS:
        raise ModelError(f"{name!r} is GGUF of version {version}, and versions 2 and 3 are read. Convert it again with a newer llama.cpp.")
    n_tensors, n_values = reader.numbers("<QQ")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = reader.text()
        metadata[key] = reader.value(reader.number("<I"))
    tensors, end = {}, 0
    for _ in range(n_tensors):
        tensor = reader.text()
        n_dimensions = reader.number("<I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise _Damaged(f"a tensor of {n_dimensions} dimensions")
        shape = reader.numbers(f"<{n_dimensions}Q")[::-1]
        kind, offset = reader.numbers("<IQ")
        if kind not in sizes:
            raise _Damaged(f"a tensor of type {kind}, which the gguf installed does not know")
        values, n_bytes = sizes[kind]
        tensors[tensor] = shape
        end = max(end, offset + math.prod(shape) // values * n_bytes)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"an alignment of {alignment}")
    if tensors and -(-reader.at // alignment) * alignment + end > len(data):
        raise _CutShort
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _Damaged("no architecture")
    return Header(architecture, metadata, tensors)


def load_gguf(path: Path, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The Hugging Face model in a GGUF file, its weights unpacked to ``dtype``, and its tokenizer.

    Both come from the file alone: what lies beside it is not looked at. Quantised weights become the numbers that they stand for, and the model
    is an ordinary one, without a quantisation configuration.

    Args:
        path: the file.
        name: what the user calls it, for messages.
        dtype: of the weights.

    Returns:
        (model with eager attention, tokenizer).

    Raises:
        ModelError: ``gguf`` is not installed; no GGUF file; damaged or cut short; one part of several; an adapter; an encoder; an architecture that
            transformers does not read; without a tokenizer; or a setting or tensor that transformers leaves out, so that the numbers would be wrong.

    Cost: unpacks all weights: some 15 s for 135 M parameters.
    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    header = read_header(path, name)
    _check_kind(header, path, name)
    try:
        with tempfile.TemporaryDirectory(prefix="gguf_") as empty:
            return _load(header, path, name, dtype, empty)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError, RuntimeError, struct.error) as error:
        raise ModelError(
            f"{name!r} (GGUF, architecture {header.architecture!r}) cannot be loaded by transformers: {first_line(error).rstrip('.')}."
            " A newer transformers may know it; or give the model in Hugging Face format."
        ) from error


def _check_kind(header: Header, path: Path, name: str) -> None:
    """Refuse what is no whole decoder."""
    shard = _SHARD.search(path.name)
    parts = int(header.metadata.get("split.count") or 0) or (int(shard[1]) if shard else 0)
    if parts > 1:
        raise ModelError(f"{name!r} is one part of a model in {parts} GGUF files: join them first with `llama-gguf-split --merge`.")
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{name!r} is a GGUF file of type {kind!r}, expected a whole model: merge it into its base model first.")
    if _ENCODERS.search(header.architecture) or header.settings.get("attention.causal") is False:
        raise ModelError(f"{name!r} is an encoder (GGUF, architecture {header.architecture!r}). Expected a decoder, which predicts the next token.")
    if not header.metadata.get("tokenizer.ggml.tokens"):
        raise ModelError(f"The GGUF file {name!r} has no tokenizer in it: give the model in Hugging Face format.")
    missing = [key for key in _NEEDED if not any(each in header.settings for each in key.split(" or "))]
    if missing:
        raise ModelError(f"The GGUF file {name!r} does not say its {header.architecture}.{missing[0]}. Fetch it again, or give another file.")


def _load(header: Header, path: Path, name: str, dtype: torch.dtype, empty: str) -> tuple[Any, Any]:
    import transformers

    # The whole path: of a bare file name, transformers would take the one in the working directory.
    options: dict[str, Any] = {"gguf_file": str(path), "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(empty, **options)
    _complete(config, header, name)
    _check_weights(config, header, name)
    if hasattr(transformers, "GgufConfig"):  # newer ones would leave weights packed where they have a kernel for it
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    hf_model, found = transformers.AutoModelForCausalLM.from_pretrained(
        empty, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True, **options
    )
    if found["missing_keys"]:
        raise ModelError(f"{_few(sorted(found['missing_keys']))} of {type(hf_model).__name__} cannot be found in the GGUF file {name!r}.")
    # No longer quantised, whatever the loader notes: a configuration that says so can be neither saved nor converted.
    for holder, attribute in ((hf_model, "hf_quantizer"), (hf_model, "quantization_method"), (hf_model.config, "quantization_config")):
        if hasattr(holder, attribute):
            delattr(holder, attribute)
    hf_model.is_quantized = False
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(empty, gguf_file=str(path), local_files_only=True)
    hf_model.config.architectures = [type(hf_model).__name__]
    hf_model.config.name_or_path = tokenizer.name_or_path = name
    return hf_model, tokenizer


def _complete(config: Any, header: Header, name: str) -> None:
    """Put into ``config`` what the file says and transformers leaves out, and refuse what can be neither compared nor put."""
    for key, value in header.settings.items():
        names = [each for each in _SAME.get(key, _COMPLETED.get(key, ())) if getattr(config, each, None) is not None]
        if key in _IGNORED or (key in _NEUTRAL and _equal(value, _NEUTRAL[key])):
            continue
        if key == "rope.freq_base" and getattr(config, "rope_parameters", None):
            rope = config.rope_parameters  # of the whole model, or of each kind of layer
            rope.get("full_attention", rope)["rope_theta"] = value
        elif key in _COMPLETED and names:
            setattr(config, names[0], value)
        elif not _agrees(config, header, key, value, names):
            raise ModelError(
                f"The GGUF file {name!r} sets {header.architecture}.{key} = {value!r}, and nothing shows that transformers takes that from it:"
                " its numbers could be wrong. Give the model in Hugging Face format."
            )
    if getattr(config, "query_pre_attn_scalar", None) is not None:  # Gemma's, in no GGUF: llama.cpp knows the largest by its number of layers
        largest = config.num_hidden_layers == _LAYERS_OF_27B.get(header.architecture)
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim


def _agrees(config: Any, header: Header, key: str, value: Any, names: list[str]) -> bool:
    """Whether the configuration has this setting's value, or does not need it."""
    if key == "rope.dimension_count":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        return _equal(value, int(head_dim * rope.get("partial_rotary_factor", 1)))
    if key == "attention.sliding_window":
        return value >= header.settings.get("context_length", math.inf) or (
            _equal(getattr(config, "sliding_window", None), value) and "sliding_attention" in (getattr(config, "layer_types", None) or ())
        )
    if key == "rope.scaling.original_context_length":
        return _equal(value, header.settings.get("context_length"))
    if key == "feed_forward_length" and not names:  # GPT-2 and BLOOM: four times the width where nothing is said
        return _equal(value, 4 * config.hidden_size)
    return bool(names) and _equal(getattr(config, names[0]), value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)


def _check_weights(config: Any, header: Header, name: str) -> None:
    """Refuse a file with weights that the model does not have, or without some that it has, before anything is allocated."""
    import gguf
    from transformers import AutoModelForCausalLM

    if config.num_hidden_layers > len(header.tensors):
        raise ModelError(
            f"The GGUF file {name!r} announces {config.num_hidden_layers:,} blocks and has {len(header.tensors):,} tensors. Fetch it again."
        )
    with torch.device("meta"):
        parameters = {key: parameter.numel() for key, parameter in AutoModelForCausalLM.from_config(config).named_parameters()}
    n_file, n_model = sum(map(math.prod, header.tensors.values())), sum(parameters.values())
    if n_file == n_model:
        return
    by_name = {known: key for key, known in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[header.architecture], config.num_hidden_layers)
    read = {names.get_name(key, try_suffixes=(".weight", ".bias")) or key for key in parameters}
    over, missing = sorted(set(header.tensors) - read), sorted(read - set(header.tensors))
    said = [f"{_few(over)} would not be read"] if over else []
    said += [f"{_few(missing)} would be missing"] if missing else []
    raise ModelError(
        f"The GGUF file {name!r} has {n_file:,} weights, and the model that transformers makes of it {n_model:,}:"
        f" {' and '.join(said) or 'the shapes differ'}. Its numbers would be wrong: give the model in Hugging Face format."
    )


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
