"""ramet. In: a job (protocol.py). Out: its figures.

`rt.Engine` and programs, as a user writes them: text in, scheduler, sampling, messages and an engine process included.
"shared" is a batch of programs that know nothing of each other, "prefixed" one program that forks.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.peer]
# name = "ramet"
# reads_weights = false
#
# [tool.peer.variants]
# int8 = {bits = 8, dtype = "int8"}
# int4 = {bits = 4, dtype = "int4"}
# torch-bf16 = {bits = 16, dtype = "bfloat16"}
# ///

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from protocol import Job, Made, serve, told

import ramet as rt


@rt.function(temperature=0, ignore_eos=True)
def plain(s: rt.State, text: str, tokens: int) -> int:
    """One call; how many tokens it made."""
    s += text
    s += rt.gen("made", max_tokens=tokens)
    return int(s.get_meta_info("made")["completion_tokens"])


@rt.function(temperature=0, ignore_eos=True)
def forked(s: rt.State, prefix: str, own: list[str], tokens: int) -> list[int]:
    """A call in each branch; how many tokens each made."""
    s += prefix
    branches = s.fork(own)
    for branch in branches:
        branch += branch.item
        branch += rt.gen("made", max_tokens=tokens)
    return [int(branch.get_meta_info("made")["completion_tokens"]) for branch in branches]


class Engine:
    """An engine, started."""

    def __init__(self, job: Job) -> None:
        self._engine = rt.Engine(
            job["weights"]["model"],
            dtype=job["options"]["dtype"],
            device="cpu",
            threads=job["threads"],
            context=job["longest"] + 64,
            kv_tokens=job["kv_tokens"],
            max_running=job["sequences"],
        )

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """A program for each."""
        run = plain.using(backend=self._engine)
        if len(prompts) > 1:
            rows = [(prompt["text"], tokens) for prompt in prompts]
            return run.batch(rows, concurrency=len(rows)).result(), []
        one = run(prompts[0]["text"], tokens)
        count = one.result()
        return [count], [each for event in one.events() if isinstance(event, rt.Token) for each in event.tokens]

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """One program."""
        run = forked.using(backend=self._engine)
        return run(prefix["text"], [each["text"] for each in own], tokens).result(), []

    def forget(self) -> None:
        """Drop cached prefixes."""
        self._engine.flush_cache()


def start(job: Job) -> None:
    """Text in, the first token's text out."""
    options = {"dtype": job["options"]["dtype"], "device": "cpu", "threads": job["threads"]}
    engine = rt.Engine(job["weights"]["model"], **options)

    @rt.function(temperature=0, ignore_eos=True)
    def first(s: rt.State) -> None:
        s += job["start"]
        s += rt.gen("made", max_tokens=2)

    for event in first.using(backend=engine)().events():
        if isinstance(event, rt.Token):
            told()
            break


def prepare(job: Job) -> None:
    """An engine packs the model's own file in its cache when it starts."""
    for options in job["variants"].values():
        rt.Engine(job["weights"]["model"], dtype=options["dtype"], device="cpu", threads=job["threads"]).close()


if __name__ == "__main__":
    serve(prepare, start, Engine, version("ramet"))
