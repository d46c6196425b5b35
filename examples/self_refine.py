"""Self-refine: a draft, a critique of it, a revision, until the critique has nothing left to say.

Shows `refine_until`: a critique that is not accepted stays in the conversation, so that the revision reads it; one that
is accepted leaves no trace. What is accepted is plain Python: here a bound on length, and the critic's own verdict.
(Madaan et al., "Self-Refine: Iterative Refinement with Self-Feedback", 2023.)
"""

from __future__ import annotations

import ramet as rt


@rt.function(temperature=0.7)
def self_refine(s: rt.State, request: str, rounds: int = 3, max_tokens: int = 60) -> rt.Settled[str]:
    """The last version, the number of revisions, and whether the critic was content."""
    s.system("You are a careful writer who takes criticism well.")

    def write(state: rt.State, instruction: str) -> rt.Value[str]:
        state.user(instruction)
        return state.reply(name="version", max_tokens=max_tokens)

    def critique(branch: rt.State) -> rt.Value[str]:
        branch.user("Is this text good as it is, or should it be changed? Then name one change.")
        branch.assistant(
            "It is " + rt.select("verdict", ["good.", "too vague.", "too long."]) + rt.gen("advice", max_tokens=24)
        )
        return branch.value("verdict")

    return rt.refine_until(
        s,
        lambda state: write(state, request),
        critique=critique,
        accept=lambda verdict: verdict == "good.",
        revise=lambda state: write(state, "Write the text again, with this change."),
        rounds=rounds,
    )


def main() -> None:
    """Refine one text on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        run = self_refine("Write two sentences that invite a friend to a picnic.")
        settled = run.result()
        for message in run.messages()[1:]:
            print(f"{message['role']}: {message['content']}")
        print(f"revisions: {settled.index}   accepted: {settled.accepted}")


if __name__ == "__main__":
    main()
