"""A graph of subproblems: each asks the model once its premises are answered; independent ones overlap.

Shows that dependencies are data: a prompt that contains another branch's value waits for it in the engine, while Python
records the whole graph without waiting. The critical path is the depth of the graph and not its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import NamedTuple

import ramet as rt


class Subproblem(NamedTuple):
    """A question, and the names of the subproblems whose answers it builds on."""

    question: str
    needs: tuple[str, ...] = ()


@rt.function(temperature=0)
def subproblem_graph(s: rt.State, graph: Mapping[str, Subproblem], max_tokens: int = 40) -> dict[str, str]:
    """The answers by name. Raises `graphlib.CycleError` when subproblems need each other."""
    s.system("You answer every question in one short sentence.")
    order = list(TopologicalSorter({name: node.needs for name, node in graph.items()}).static_order())

    answers: dict[str, rt.Value[str]] = {}
    for branch in s.fork(order):
        with branch.user():
            for premise in graph[branch.item].needs:
                branch += f"Known about {premise}: " + answers[premise] + "\n"
            branch += graph[branch.item].question
        answers[branch.item] = branch.reply(name="answer", max_tokens=max_tokens)
    return {name: answers[name].get() for name in graph}


GRAPH = {
    "sun": Subproblem("What does the sun give to plants?"),
    "water": Subproblem("What does water do for plants?"),
    "growth": Subproblem("How do plants grow?", needs=("sun", "water")),
    "soil": Subproblem("Why does soil matter to a garden?"),
    "plan": Subproblem("Where should I plant a garden, and why?", needs=("growth", "soil")),
}


def main() -> None:
    """Answer the graph on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        for name, answer in subproblem_graph(GRAPH).result().items():
            print(f"{name:8} {answer}")


if __name__ == "__main__":
    main()
