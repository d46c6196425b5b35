"""A ReAct agent in plain text: thought, action, input, observation, until it finishes.

Shows a dynamic loop: the model picks a tool by constrained choice, a host function runs through `call` and its result
joins the text without a round trip through the body. The transcript stays one sequence: nothing is computed twice.
(Yao et al., "ReAct: Synergizing Reasoning and Acting in Language Models", 2022.)
"""

from __future__ import annotations

import re
from collections.abc import Callable

import ramet as rt

FACTS = {
    "eiffel": "The Eiffel Tower is 330 metres high.",
    "everest": "Mount Everest is 8849 metres high.",
    "mariana": "The Mariana Trench is 10935 metres deep.",
}
_TERM = re.compile(r"(-?\d+(?:\.\d+)?)\s*([-+*/])\s*(-?\d+(?:\.\d+)?)")


def lookup(text: str) -> str:
    """The fact whose key occurs in `text`."""
    found = [fact for key, fact in FACTS.items() if key in text.lower()]
    return " ".join(found) or f"Nothing found; known are {', '.join(FACTS)}."


def calculate(text: str) -> str:
    """The value of the first "a op b" in `text`, with op one of + - * /."""
    match = _TERM.search(text)
    if match is None:
        return "Write two numbers with + - * or / between them."
    left, right = float(match[1]), float(match[3])
    if match[2] == "/" and right == 0:
        return "Division by zero."
    results = {"+": left + right, "-": left - right, "*": left * right}
    return f"{results[match[2]] if match[2] in results else left / right:g}"


TOOLS: dict[str, Callable[[str], str]] = {"lookup": lookup, "calculate": calculate}
INTRODUCTION = """Answer the question with the tools lookup and calculate; use finish to give the answer.

Question: How much higher is Mount Everest than the Eiffel Tower?
Thought: I need both heights.
Action: lookup
Input: everest and eiffel
Observation: The Eiffel Tower is 330 metres high. Mount Everest is 8849 metres high.
Thought: I subtract them.
Action: calculate
Input: 8849 - 330
Observation: 8519
Thought: I know the answer.
Action: finish
Input: 8519 metres

"""


@rt.function(temperature=0)
async def react_agent(s: rt.State, question: str, max_steps: int = 4, max_tokens: int = 32) -> str:
    """The agent's answer, or "gave up" after `max_steps` tool calls."""
    s += INTRODUCTION + f"Question: {question}\n"
    for _ in range(max_steps):
        s += "Thought:"
        s.gen(name="thought", max_tokens=max_tokens, stop="\n")
        s += "\nAction: "
        tool = s.select([*TOOLS, "finish"], name="tool")
        s += "\nInput:"
        argument = s.gen(name="input", max_tokens=max_tokens, stop="\n")
        if await tool == "finish":
            return (await argument).strip()
        s += "\nObservation: " + s.call(TOOLS[await tool], argument) + "\n"
    return "gave up"


def main() -> None:
    """Let the agent answer one question on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        run = react_agent("How much deeper is the Mariana Trench than Mount Everest is high?")
        print("answer:", run.result())
        print(run.text())


if __name__ == "__main__":
    main()
