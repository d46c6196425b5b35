"""Tree of thought: propose several next steps, rate each, go on from the best.

Shows `fork` of a fork, a rating on a side branch (`copy`) that leaves no trace in the main one, and `adopt`.
All proposals of a level decode together, then all ratings: two waits per level, whatever the width.
(Yao et al., "Tree of Thoughts: Deliberate Problem Solving with Large Language Models", 2023.)
"""

from __future__ import annotations

import ramet as rt

RATINGS = ["1", "2", "3", "4", "5"]


def rate(thought: rt.State) -> rt.Value[str]:
    """How promising the path is, judged on a branch of its own."""
    judge = thought.copy()
    judge.user("How promising are these steps? Answer with one number from 1 (bad) to 5 (very good).")
    judge.assistant(rt.select("rating", choices=RATINGS))
    return judge.value("rating")


@rt.function(temperature=0.8)
def tree_of_thought(
    s: rt.State, problem: str, depth: int = 2, width: int = 3, keep: int = 2, max_tokens: int = 40
) -> str:
    """The final answer, after a beam search `depth` levels deep that keeps the `keep` best of all `width` proposals."""
    s.system("You solve problems step by step.")
    s.user(f"Problem: {problem}\nWe write down one short step at a time.")
    s.assistant("Good. I am ready for the first step.")

    frontier = [s]
    for level in range(1, depth + 1):
        thoughts = [branch for state in frontier for branch in state.fork(width)]
        for thought in thoughts:
            thought.user(f"Write step {level} in one sentence.")
            thought.reply(name="step", max_tokens=max_tokens, stop="\n")
        ratings = rt.gather(*[rate(thought) for thought in thoughts])
        best = sorted(range(len(thoughts)), key=lambda i: -int(ratings[i]))  # stable: ties keep their order
        frontier = [thoughts[i] for i in best[:keep]]

    s.adopt(frontier[0])
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
