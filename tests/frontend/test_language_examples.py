"""The two programs that show how a program should read, on a mock."""

import json
from dataclasses import dataclass
from typing import Literal

import ramet as rt


@dataclass
class Action:
    tool: Literal["weather", "convert", "finish"]
    argument: str


@rt.function
def skeleton_of_thought(s: rt.State, question: str, points: int = 4) -> str:
    s.system("You answer in short, plain sentences.")
    s.user(f"List {points} points, 3 to 6 words each, that together answer:\n{question}")
    titles = s.reply(list[str], name="outline", max_tokens=200).get()

    branches = s.fork(titles)
    for branch in branches:
        branch.user(f"Expand this point in two sentences: {branch.item}")
        branch.reply(name="body", max_tokens=120)

    return "\n\n".join(f"{title}. {body}" for title, body in zip(titles, branches.gather("body"), strict=True))


def weather(city: str) -> str:
    return f"sun in {city}"


async def convert(celsius: str) -> str:
    return f"{float(celsius) * 9 / 5 + 32} F"


TOOLS = {"weather": weather, "convert": convert}


@rt.function
async def agent(s: rt.State, task: str, max_steps: int = 6) -> str:
    s.system("Use the tools until you can finish. Tools: weather(city), convert(celsius), finish(answer).")
    s.user(task)
    for _ in range(max_steps):
        action = await s.reply(Action, max_tokens=64)
        if action.tool == "finish":
            return action.argument
        s.tool(await s.call(TOOLS[action.tool], action.argument))
    return "gave up"


def test_skeleton_of_thought():
    mock = rt.Mock(
        {"outline": '["Heat rises", "Air cools"]', "body": lambda prompt, var: prompt.count("Heat") * "h" + "."}
    )
    run = skeleton_of_thought.using(backend=mock)("Why does it rain?")
    assert run.result(10) == "Heat rises. hh.\n\nAir cools. h."
    assert len(mock.prompts) == 3
    assert all(prompt.startswith(mock.prompts[0]) for prompt in mock.prompts)


def test_agent():
    actions = [("weather", "Rome"), ("convert", "20"), ("finish", "68 F and sunny")]
    mock = rt.Mock([json.dumps({"tool": tool, "argument": argument}) for tool, argument in actions])
    run = agent.using(backend=mock)("Weather in Rome, in F?")
    assert run.result(10) == "68 F and sunny"
    results = [m["content"] for m in run.messages() if m["role"] == "tool"]
    assert results == ["sun in Rome", "68.0 F"]
    mock = rt.Mock('{"tool": "weather", "argument": "Rome"}')
    assert agent.using(backend=mock)("Again?", max_steps=2).result(10) == "gave up"
