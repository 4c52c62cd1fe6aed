"""The tokenizer: byte-level BPE over words, so that a value is one to three tokens wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from governor_training.pretraining import chat

VOCABULARY = 1536

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tool and reasoning tags: not special, or the detokenizer would drop them and no parser could see a call."""
SPECIAL = (chat.PAD, "<|im_start|>", chat.END)

_WORDS = Regex(
    r"[\]}\"]*(?:, )?(?:[{\[]*\"[a-z_]+\": )+[\[{\"]*"  # JSON between two values
    r"|[\]}\"]+(?:, )?\"?"  # the end of a JSON object
    r"| ?[a-z]+(?:-[a-z]+)?"  # common words, with their space
    r"|[A-Z][a-z]+|[A-Z]+|\.[a-z]{2}(?![a-z])|[0-9]+"  # names and values, without it
    r"|\s+|."
)


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """A tokenizer of `VOCABULARY` tokens whose frequent words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def build(directory: Path, episodes: Iterator[str]) -> Tokenizer:
    """Trains the tokenizer on the text of episodes and writes it as transformers and vLLM load it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(episodes)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=chat.END, pad_token=chat.PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = chat.CHAT_TEMPLATE
    fast.model_max_length = 2048
    fast.save_pretrained(directory)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Raises ValueError for a token that the tokenizer does not have."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return int(found)
