"""Multi-turn chat, streamed: every answer appears token by token, and each turn reuses all turns before it.

Shows that a body does not wait where nothing is read: all turns are recorded at once, the engine goes from the end of
one answer straight to the next question, and the reader follows through `events()`.
"""

from __future__ import annotations

from collections.abc import Sequence

import ramet as rt


@rt.function(temperature=0)
def multi_turn_chat(s: rt.State, questions: Sequence[str], max_tokens: int = 60) -> list[str]:
    """The answers to `questions`, asked one after the other in one conversation."""
    s.system("You are a friendly assistant who answers in one or two sentences.")
    answers = []
    for question in questions:
        s.user(question)
        answers.append(s.reply(max_tokens=max_tokens))
    return [answer.get() for answer in answers]


def main() -> None:
    """Print a conversation while the default model writes it."""
    questions = ["What is a radix tree?", "What is it good for?", "Give one example."]
    with rt.Engine() as engine, rt.using(engine):
        run = multi_turn_chat(questions)
        asked = iter(questions)
        for event in run.events():
            if isinstance(event, rt.Started):
                print(f"\n\n> {next(asked)}")
            elif isinstance(event, rt.Token):
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
