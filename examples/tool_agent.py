"""An agent with tools: plain functions, whose schemas come from their signatures and docstrings.

Shows a dynamic loop: the model answers or calls, arguments are always valid and already converted, and what
tools return joins the conversation without a round trip through the body. What a tool raises is told to the model.
"""

from __future__ import annotations

from typing import Literal

import ramet as rt

HEIGHTS = {"Eiffel Tower": 330, "Mount Everest": 8849, "Burj Khalifa": 828, "Ulm Minster": 162}
Place = Literal["Eiffel Tower", "Mount Everest", "Burj Khalifa", "Ulm Minster"]


def height(place: Place) -> str:
    """How high something is.

    Args:
        place: the building or mountain
    """
    return f"{HEIGHTS[place]} metres"


def calculate(left: float, operator: Literal["+", "-", "*", "/"], right: float) -> str:
    """The result of one arithmetic operation on two numbers."""
    if operator == "/" and right == 0:
        raise ValueError("division by zero")
    results = {"+": left + right, "-": left - right, "*": left * right}
    return f"{results[operator] if operator in results else left / right:g}"


TOOLS = [height, calculate]


@rt.function(temperature=0)
async def tool_agent(s: rt.State, question: str, max_rounds: int = 4, max_tokens: int = 128) -> str:
    """The agent's answer, or "gave up" after `max_rounds` rounds of tool calls."""
    s.tools(TOOLS)
    s.system("Answer in one sentence. Use the tools for heights and for arithmetic.")
    s.user(question)
    for n in range(max_rounds):
        choice = "auto" if n else "required"  # look first: small models would rather guess
        reply = await s.reply(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=max_tokens)
        if not reply.calls:
            return reply.content.strip()
        s.run_tools(reply)
    return "gave up"


def main() -> None:
    """Let the agent answer one question on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        run = tool_agent("How high is the Eiffel Tower?")
        print("answer:", run.result())
        print(run.text())


if __name__ == "__main__":
    main()
