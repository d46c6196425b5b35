"""The tool agent on the Mock: what it is told, which calls run, and when it ends."""

from __future__ import annotations

import ramet as rt
from ramet.examples.tool_agent import calculate, height, tool_agent
from ramet.frontend.ir import ToolCall
from ramet.frontend.toolcalls import message_text

WAIT = 20.0


def calling(name: str, arguments: str) -> str:
    return message_text(None, [ToolCall(name, arguments)])


def test_it_looks_up_calculates_and_answers():
    answers = [
        calling("height", '{"place": "Mount Everest"}'),
        calling("calculate", '{"left": 8849, "operator": "-", "right": 330}'),
        " 8519 metres. ",
    ]
    run = tool_agent.using(backend=rt.Mock(answers))("How much higher?")
    assert run.result(WAIT) == "8519 metres."
    told = [message["content"] for message in run.messages() if message["role"] == "tool"]
    assert told == ["8849 metres", "8519"]
    assert sum(isinstance(event, rt.Finished) for event in run.events()) == 3


def test_a_failing_tool_is_told_to_the_model_and_rounds_are_bounded():
    again = calling("calculate", '{"left": 1, "operator": "/", "right": 0}')
    run = tool_agent.using(backend=rt.Mock([again] * 2))("1 / 0?", max_rounds=2)
    assert run.result(WAIT) == "gave up"
    assert run.messages()[-1] == {"role": "tool", "content": "Error: ValueError: division by zero"}


def test_its_tools():
    assert height("Burj Khalifa") == "828 metres"
    assert [calculate(7, operator, 2) for operator in "+-*/"] == ["9", "5", "14", "3.5"]
