"""A byte-level BPE over the words of the toy world: each of its words is one token, each digit too, and any text round trips.

Every document begins with `<|endoftext|>`, in training and in use; the tokenizer puts it there itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lensplorer.storyworld import grammar, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<|endoftext|>"
SPECIALS = (BOS, grammar.SYSTEM, grammar.USER, grammar.ASSISTANT, grammar.END)
# A word with the space before it, one digit, one mark with the space before it, or white space.
PIECES = r"'s| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _texts() -> Iterator[str]:
    for name in words.REPEATED:
        yield f"{name} {name}"
    yield from (f" {word}" for word in words.SPARE)
    # these begin sentences too rarely for the sample below to be sure of them
    yield from (" If", "Someone", *(thing[0].upper() + thing[1:] for thing in words.COLOUR_OF))
    for phenomenon in grammar.PHENOMENA:
        for seed in range(1500):
            for world in (grammar.World(), grammar.World(wordings="development")):
                yield grammar.write(phenomenon, seed=f"tokenizer:{seed}", world=world).text


def build() -> PreTrainedTokenizerFast:
    """Learns the tokenizer from the grammar: the same every time. Takes some seconds."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    # Every distinct piece counts once, so that merging goes on until each is a single token.
    pieces = {piece for text in _texts() for piece, _ in pre_tokenizers.Split(Regex(PIECES), "isolated").pre_tokenize_str(text)}
    specials = [AddedToken(special, special=True, normalized=False) for special in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(([piece] for piece in sorted(pieces - set("|"))), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=None, pad_token=BOS, model_max_length=512,
        clean_up_tokenization_spaces=False, add_bos_token=True, extra_special_tokens=list(SPECIALS[1:])
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast
