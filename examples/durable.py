"""Durable: a run that fails half-way, and goes on from where it was, also in another process or on another day.

Shows a journal: what the model has said and what host functions have returned is recorded as it comes, and a resumed
run does again only what had not finished, to the same bits. What is done to the world outside is told apart by
`idempotency_key`: a parcel that was announced twice under one key is one parcel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import ramet as rt

LETTERS = ("The lamp arrived broken.", "I ordered two chairs, one came.", "Wrong colour of curtains.")


@rt.function(temperature=0.7)
def answer_letters(
    s: rt.State, letters: tuple[str, ...], send: Callable[[str, str], str], max_tokens: int = 40
) -> list[str]:
    """One receipt per letter: each is answered on a branch of its own, and the answer is sent."""
    s.system("You answer letters of customers in one friendly sentence.")
    branches = s.fork(letters)
    receipts = []
    for branch in branches:
        branch.user(branch.item)
        receipts.append(branch.call(send, branch.item, branch.reply(name="answer", max_tokens=max_tokens)))
    return [receipt.get() for receipt in receipts]


class Post:
    """A post office that is closed to one letter, once."""

    def __init__(self, closed_to: str) -> None:
        self._closed_to = closed_to
        self.sent: dict[str, str] = {}

    def send(self, letter: str, answer: str) -> str:
        """A receipt. Raises `ConnectionError`."""
        if letter == self._closed_to:
            self._closed_to = ""
            raise ConnectionError("the post office is closed")
        self.sent[rt.idempotency_key()] = answer
        return f"{letter} -> {answer}"


def interrupted(backend: rt.Backend, journal: Path) -> tuple[rt.Run[list[str]], rt.Run[list[str]]]:
    """A run that failed since the post was closed, and the one that goes on with it."""
    program = answer_letters.using(backend=backend, journal=journal)
    post = Post(closed_to=LETTERS[1])
    first = program(LETTERS, post.send)
    first.sync()
    return first, program.using(resume=first.id)(LETTERS, post.send)


def main() -> None:
    """Answer three letters on the default model; the first attempt fails at the second letter."""
    with rt.Engine() as engine, tempfile.TemporaryDirectory() as folder:
        first, again = interrupted(engine, Path(folder) / "runs.db")
        print(f"run {first.id} failed: {first.error()}")
        print("\n".join(again.result()))


if __name__ == "__main__":
    main()
