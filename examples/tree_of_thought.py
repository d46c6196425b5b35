"""Tree of thought: propose several next steps, rate each, go on from the best.

Shows `tree_search`, with a judge that is asked on side branches and leaves no trace in the steps themselves. All
proposals of a level and all their ratings are one submission, whatever the width.
(Yao et al., "Tree of Thoughts: Deliberate Problem Solving with Large Language Models", 2023.)
"""

from __future__ import annotations

import ramet as rt

RATINGS = ["1", "2", "3", "4", "5"]


def rate(thought: rt.State) -> rt.Value[str]:
    """How promising the path is."""
    thought.user("How promising are these steps? Answer with one number from 1 (bad) to 5 (very good).")
    thought.assistant(rt.select("rating", choices=RATINGS))
    return thought.value("rating")


@rt.function(temperature=0.8)
def tree_of_thought(
    s: rt.State, problem: str, depth: int = 2, width: int = 3, keep: int = 2, max_tokens: int = 40
) -> str:
    """The final answer, after a search `depth` levels deep that goes on from the `keep` best of all proposals."""
    s.system("You solve problems step by step.")
    s.user(f"Problem: {problem}\nWe write down one short step at a time.")
    s.assistant("Good. I am ready for the first step.")

    def propose(branch: rt.State, level: int) -> rt.Value[str]:
        branch.user(f"Write step {level + 1} in one sentence.")
        return branch.reply(name="step", max_tokens=max_tokens, stop="\n")

    rt.tree_search(s, propose, n=width, depth=depth, keep=keep, judge=rate)
    s.user("Now state the final answer in one sentence.")
    return s.reply(name="answer", max_tokens=max_tokens, temperature=0).get()


def main() -> None:
    """Solve one problem on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        run = tree_of_thought("Four people must cross a bridge at night with one torch; two may cross at a time.")
        print(run.result())
        print(run.tree())


if __name__ == "__main__":
    main()
