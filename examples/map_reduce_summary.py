"""Map-reduce summary: summarise the parts of a long text in parallel, then summarise the summaries.

Shows values that flow between branches without a wait: the reducing turn is recorded with the parts' handles in it,
and starts in the engine when the last of them is known.
"""

from __future__ import annotations

import ramet as rt
from ramet.examples.parse import chunks


@rt.function(temperature=0)
def map_reduce_summary(s: rt.State, text: str, parts: int = 4, max_tokens: int = 48) -> str:
    """A summary of `text`, made from summaries of `parts` pieces of equal length."""
    s.system("You summarise texts in plain sentences.")
    reducer = s.copy()

    mappers = s.fork(chunks(text, parts))
    partial = []
    for mapper in mappers:
        mapper.user(f"Summarise in one sentence:\n{mapper.item}")
        partial.append(mapper.reply(name="partial", max_tokens=max_tokens))

    with reducer.user():
        reducer += "Merge these notes into two sentences:"
        for note in partial:
            reducer += "\n- " + note
    return reducer.reply(name="summary", max_tokens=2 * max_tokens).get()


TEXT = """
A radix tree stores strings by their common prefixes. Each edge carries a run of symbols, and a node has at most one
child for every first symbol. Looking a key up takes time in the length of the key and not in the number of keys.
Language models compute keys and values for every token of a prompt. Two prompts that begin alike have the same keys
and values over the common part. An engine that keeps them in a radix tree computes the common part once.
Programs that call a model many times share long prefixes: instructions, examples, a document, the turns so far.
When such a program forks, all branches go on from one node of the tree, and nothing is copied.
Memory is limited, so the tree gives up its least recently used leaves first. What is in use is locked and stays.
"""


def main() -> None:
    """Summarise a short text on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        print(map_reduce_summary(TEXT).result())


if __name__ == "__main__":
    main()
