"""Self-consistency: sample several chains of thought for one question and let them vote.

Shows `fork(n)`: the question is computed once, the chains decode as one batch, each with noise of its own.
(Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2022.)
"""

from __future__ import annotations

from collections import Counter

import ramet as rt
from ramet.examples.parse import integer


@rt.function(temperature=0.8)
def self_consistency(s: rt.State, question: str, samples: int = 5, max_tokens: int = 80) -> tuple[int, Counter[int]]:
    """The answer (0 to 9999) that most chains reach, and all votes; the first of equals wins."""
    s.system("You reason briefly and end with the answer as a number.")
    s.user(question)
    chains = s.fork(samples)
    for chain in chains:
        chain.reply(name="reasoning", max_tokens=max_tokens)
    votes = Counter(integer(text, 0, 9999) for text in chains.gather("reasoning"))
    return votes.most_common(1)[0][0], votes


def main() -> None:
    """Vote on one question on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        answer, votes = self_consistency("A box holds 12 eggs. How many eggs do 7 boxes hold?").result()
    print(f"answer: {answer}   votes: {dict(votes)}")


if __name__ == "__main__":
    main()
