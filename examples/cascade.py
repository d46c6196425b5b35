"""A cascade: ask a small model first, and a larger one only when the small one is unsure of its own words.

Shows one program on several backends (`using`) and the mean logprob of a generation as a measure of confidence. The
larger model may be a server: `python -m ramet.examples.cascade http://host:port` (a ramet server, or one of SGLang's
protocol), or with a model's name behind it, chat completions: `... https://host/v1 MODEL`.
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


def larger_model(arguments: Sequence[str]) -> rt.Endpoint | rt.OpenAI | rt.Engine | rt.Mock:
    """The backend that the command line names: a URL, a URL and a model, a model here; nothing: a stand-in, so that the
    example runs anywhere."""
    if not arguments:
        return rt.Mock("(here the larger model would answer: name its server on the command line)")
    if not arguments[0].startswith("http"):
        return rt.Engine(arguments[0])
    return rt.OpenAI(arguments[1], arguments[0]) if len(arguments) > 1 else rt.Endpoint(arguments[0])


def main() -> None:
    """Cascade from the default model, in this machine, to the one that the command line names."""
    with rt.Engine() as small, larger_model(sys.argv[1:]) as large:
        for question in ("What is the capital of France?", "Which knot did Captain Ahab prefer, and why?"):
            answer = cascade(question, [small, large])
            print(f"{question}\n  model {answer.model} (mean logprob {answer.confidence:.2f}): {answer.text}")


if __name__ == "__main__":
    main()
