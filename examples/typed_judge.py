"""A typed judge: several jurors read one answer, each with an eye of its own, and return verdicts that code can use.

Shows `fork` with typed values: every branch returns a dataclass whose reason comes before its score, so that the score
follows from it; then one number, by itself, and a yes or no by likelihood. No text is parsed by hand.
(Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", 2023.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MaxLen

import ramet as rt

CRITERIA = ("correctness", "completeness", "style")


@dataclass(frozen=True)
class Verdict:
    """What one juror finds; 1 is bad, 5 is good."""

    reason: Annotated[str, MaxLen(120)]
    score: Literal[1, 2, 3, 4, 5]


@dataclass(frozen=True)
class Judgement:
    """All verdicts by criterion, how many words a perfect answer needs, and whether this one may be published."""

    verdicts: dict[str, Verdict]
    words: int
    publish: bool


@rt.function(temperature=0)
def typed_judge(
    s: rt.State, question: str, answer: str, criteria: Sequence[str] = CRITERIA, max_tokens: int = 100
) -> Judgement:
    """Judge `answer`."""
    s.system("You judge answers to questions. You are strict and fair.")
    s.user(f"Question: {question}\nAnswer: {answer}")

    jurors = s.fork(criteria)
    for juror in jurors:
        juror.user(f"How good is the {juror.item} of this answer? Give your reason, and a score from 1 to 5.")
        juror.reply(Verdict, name="verdict", max_tokens=max_tokens)

    s.user("How many words does a perfect answer need? Give a number.")
    words = s.reply(int, name="words", max_tokens=8)
    s.user("May the answer be published? True or False?")
    publish = s.reply(bool, name="publish")
    return Judgement(dict(zip(criteria, jurors.gather("verdict"), strict=True)), words.get(), publish.get())


def main() -> None:
    """Judge one answer on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        judgement = typed_judge("Why is the sky blue?", "Because air scatters blue light more than red light.").result()
    for criterion, verdict in judgement.verdicts.items():
        print(f"{criterion}: {verdict.score} of 5: {verdict.reason}")
    print(f"a perfect answer needs {judgement.words} words; publish: {judgement.publish}")


if __name__ == "__main__":
    main()
