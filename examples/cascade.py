"""A cascade: ask a small model first, and a larger one only when the small one is unsure of its own words.

Shows one program on several backends (`using`) and the mean logprob of a generation as a measure of confidence.
(Chen et al., "FrugalGPT: How to Use Large Language Models While Reducing Cost and Improving Performance", 2023.)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import ramet as rt


@dataclass(frozen=True)
class Answer:
    """A text, how sure its model was (mean logprob per token, 0 is certain), and the model's place in the cascade."""

    text: str
    confidence: float
    model: int = 0


@rt.function(temperature=0)
def ask(s: rt.State, question: str, max_tokens: int = 48) -> Answer:
    """One model's answer."""
    s.user(question)
    reply = s.reply(name="answer", max_tokens=max_tokens, logprobs=0)
    text, mean = reply.get(), reply.meta.mean_logprob
    return Answer(text, -math.inf if mean is None else mean)


def cascade(question: str, models: Sequence[rt.Backend], threshold: float = -0.7, max_tokens: int = 48) -> Answer:
    """The first answer whose confidence reaches `threshold`, from the cheapest model on; else the last model's."""
    for index, model in enumerate(models):
        answer = ask.using(backend=model)(question, max_tokens=max_tokens).result()
        if answer.confidence >= threshold or index == len(models) - 1:
            return Answer(answer.text, answer.confidence, index)
    raise ValueError("models is empty: name at least one")


def main() -> None:
    """Cascade from the default model to the one named on the command line (without a name: to the default again)."""
    larger = sys.argv[1] if len(sys.argv) > 1 else "default"
    with rt.Engine() as small, rt.Engine(larger) as large:
        for question in ("What is the capital of France?", "Which knot did Captain Ahab prefer, and why?"):
            answer = cascade(question, [small, large])
            print(f"{question}\n  model {answer.model} (mean logprob {answer.confidence:.2f}): {answer.text}")


if __name__ == "__main__":
    main()
