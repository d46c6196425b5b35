"""A judge: assess an essay along several dimensions at once, then merge the assessments into a verdict.

Shows branch-solve-merge: `fork` over the dimensions, free text and a constrained score in each branch, `join`, and one
last turn that reads what the branches found.
(Saha et al., "Branch-Solve-Merge Improves Large Language Model Evaluation and Generation", 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ramet as rt

DIMENSIONS = ("clarity", "evidence", "originality", "structure")
SCORES = ["1", "2", "3", "4", "5"]


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 5 by dimension, and the report."""

    scores: dict[str, int]
    report: str


@rt.function(temperature=0)
def llm_judge(s: rt.State, essay: str, dimensions: Sequence[str] = DIMENSIONS, max_tokens: int = 40) -> Verdict:
    """Judge `essay`."""
    s.system("You are a strict but fair judge of essays.")
    s.user(f"Essay:\n{essay}\n\nI will ask you about it.")
    s.assistant("I have read the essay.")

    branches = s.fork(dimensions)
    for branch in branches:
        branch.user(f"Assess the {branch.item} of the essay in one sentence, then give a score from 1 to 5.")
        branch.assistant(rt.gen("why", max_tokens=max_tokens, stop="\n") + "\nScore: " + rt.select("score", SCORES))
    branches.join()  # s["why"] and s["score"] are lists now, in the order of the branches

    rows = list(zip(dimensions, s["why"], s["score"], strict=True))
    findings = [f"{name}: {why.strip()} ({score} of 5)" for name, why, score in rows]
    s.user("Your assessments:\n" + "\n".join(findings) + "\nWrite the verdict in two sentences.")
    report = s.reply(name="report", max_tokens=2 * max_tokens).get()
    return Verdict({name: int(score) for name, _, score in rows}, report)


def main() -> None:
    """Judge a short essay on the default model."""
    essay = "Cities should plant more trees. Trees cool the streets, clean the air and make people want to walk."
    with rt.Engine() as engine, rt.using(engine):
        verdict = llm_judge(essay).result()
    print(verdict.scores)
    print(verdict.report)


if __name__ == "__main__":
    main()
