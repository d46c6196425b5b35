"""Skeleton-of-thought: an outline first, then every point expanded in parallel from the shared prefix.

Shows `fork` over a list: the branches decode as one batch, and the conversation up to the outline is computed once.
(Ning et al., "Skeleton-of-Thought: Prompting LLMs for Efficient Parallel Generation", 2023.)
"""

from __future__ import annotations

import ramet as rt
from ramet.examples.parse import numbered_list


@rt.function(temperature=0, repetition_penalty=1.15)
def skeleton_of_thought(
    s: rt.State, question: str, points: int = 4, outline_tokens: int = 160, max_tokens: int = 64
) -> str:
    """An answer of `points` paragraphs."""
    s.system("You are a helpful assistant.")
    s.user(f"{question} Answer with a list of {points} numbered points, a few words each.")
    outline = s.reply(name="outline", max_tokens=outline_tokens, stop=f"\n{points + 1}.")

    titles = [item.partition(":")[0].strip("* ") for item in numbered_list(outline.get(), points)]
    branches = s.fork(titles)
    for branch in branches:
        branch.user(f"Explain in two sentences: {branch.item}.")
        branch.reply(name="body", max_tokens=max_tokens)

    bodies = branches.gather("body")
    return "\n\n".join(f"{branch.item}\n{body}" for branch, body in zip(branches, bodies, strict=True))


def main() -> None:
    """Answer one question on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        print(skeleton_of_thought("How can a small team keep its software simple?").result())


if __name__ == "__main__":
    main()
