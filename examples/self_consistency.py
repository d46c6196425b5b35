"""Self-consistency: sample several chains of thought for one question and let them vote.

Shows `vote`: the question is computed once, the chains decode as one batch, each with noise of its own, and what cannot
change the outcome any more is stopped. The conversation goes on from a chain that won.
(Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2022.)
"""

from __future__ import annotations

import ramet as rt
from ramet.examples.parse import integer


@rt.function(temperature=0.8)
def self_consistency(
    s: rt.State, question: str, samples: int = 5, max_tokens: int = 80, early_stop: bool = True
) -> tuple[int, str]:
    """The answer (0 to 9999) that most chains reach, the first of equals; and the first chain that reaches it."""
    s.system("You reason briefly and end with the answer as a number.")
    s.user(question)

    def answer(reasoning: str) -> int:
        return integer(reasoning, 0, 9999)

    chain = rt.vote(
        s,
        lambda branch: branch.reply(name="reasoning", max_tokens=max_tokens),
        n=samples,
        key=answer,
        early_stop=early_stop,
    )
    return answer(chain), chain


def main() -> None:
    """Vote on one question on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        run = self_consistency("A box holds 12 eggs. How many eggs do 7 boxes hold?", samples=7)
        answer, chain = run.result()
        print(f"answer: {answer}   by this chain, and others: {chain}")
        print(f"generated tokens: {run.usage.generated_tokens}")


if __name__ == "__main__":
    main()
