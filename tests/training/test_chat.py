"""The chat template that vLLM renders and the text that the model was trained on are the same."""

from __future__ import annotations

from typing import Any

import pytest

from governor_training.atlas.local import bundled_model
from governor_training.atlas.tools import ANSWERING, SAVING
from governor_training.pretraining import chat

transformers = pytest.importorskip("transformers")

QUESTION = "What is the capital of Peru?"
CALL = {"name": "lookup", "arguments": {"country": "Peru", "field": "capital"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": chat.SYSTEM},
    {"role": "user", "content": QUESTION},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "\nPeru: Lima\n",
        "tool_calls": [{"id": "call_1", "type": "function", "function": CALL}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Lima"},
]
HISTORY = (
    chat.user_turn(QUESTION)
    + chat.ASSISTANT
    + chat.thought("Peru: Lima")
    + chat.call("lookup", country="Peru", field="capital")
    + f"{chat.END}\n"
    + chat.tool_turn("Lima")
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """As vLLM loads it."""
    return transformers.AutoTokenizer.from_pretrained(bundled_model())


@pytest.mark.parametrize("tools", [ANSWERING, SAVING])
@pytest.mark.parametrize(("thinking", "start"), [(True, ""), (False, chat.EMPTY_THOUGHT)])
def test_the_template_writes_what_was_trained(
    tokenizer: Any, tools: tuple[dict[str, Any], ...], thinking: bool, start: str
) -> None:
    """A conversation with a thought, a call and its result, with and without thinking, for both sets of
    tools."""
    text = tokenizer.apply_chat_template(
        MESSAGES, tools=list(tools), tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert text == chat.system_turn(tools) + HISTORY + chat.ASSISTANT + start


def test_no_tools_no_list_of_tools(tokenizer: Any) -> None:
    """Without tools the system turn is the client's own text."""
    text = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert text == chat.system_turn(()) + chat.user_turn(QUESTION) + chat.ASSISTANT


@pytest.mark.parametrize("text", ["Peru: Lima", "The domain of Sri Lanka is .lk.", "1821", "South Korea"])
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    """What is encoded is decoded as it was, entities in one to three tokens."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None


def test_tool_tags_are_single_tokens_and_stay_visible(tokenizer: Any) -> None:
    """A tag is one token, and is not special: the detokenizer would drop it and no parser would see a
    call."""
    for tag in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
        (token,) = tokenizer.encode(tag, add_special_tokens=False)
        assert tokenizer.decode([token], skip_special_tokens=True) == tag
