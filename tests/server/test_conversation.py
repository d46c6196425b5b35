"""Messages of clients as chats: parts join, roles are the template's, nothing is left out without a word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.server.call import Message
from ramet.runtime.server.conversation import ChatMessage, Part, chat_of, content_of
from ramet.runtime.server.failures import Failure


@given(st.lists(st.text(max_size=8), max_size=6))
@settings(deadline=None)
def test_parts_join_with_nothing_between(texts: list[str]) -> None:
    assert content_of([Part(type="text", text=text) for text in texts], "x") == "".join(texts)


def test_what_was_left_out_is_named_or_refused() -> None:
    said = ChatMessage.model_validate({"role": "assistant", "content": "x", "mood": "hm", "tool_calls": []})
    chat, notes = chat_of([said], context=8)
    assert chat.messages == (Message("assistant", "x"),)
    assert ["messages[0].mood" in note for note in notes] == [True]
    with pytest.raises(Failure, match="mood"):
        chat_of([said], context=8, strict=True)


def test_thoughts_of_earlier_turns_need_no_word() -> None:
    said = ChatMessage.model_validate(
        {"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_content": "hm"}
    )
    assert chat_of([said], context=8, strict=True)[1] == ()
