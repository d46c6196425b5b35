"""Best of n: several answers to one request, of which the model itself picks the best; or the one it is surest of.

Shows `best_of`: with a judge, which grades every candidate on a side branch of its own, and without one, by the mean
logprob of the candidate's tokens. Then the conversation goes on from the winner.
(Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021; Zheng et al., "Judging LLM-as-a-Judge", 2023.)
"""

from __future__ import annotations

import ramet as rt

GRADES = ["1", "2", "3", "4", "5"]


def grade(candidate: rt.State) -> rt.Value[str]:
    """What the model thinks of its own answer."""
    candidate.user("Grade this answer from 1 (poor) to 5 (excellent).")
    candidate.assistant("Grade: " + rt.select("grade", choices=GRADES))
    return candidate.value("grade")


@rt.function(temperature=0.8)
def best_of_n(
    s: rt.State, request: str, candidates: int = 4, judged: bool = True, max_tokens: int = 60
) -> tuple[rt.Best[str], str]:
    """The best of `candidates` answers, by its grade or by its mean logprob, and a shorter version of it."""
    s.system("You write clear, friendly sentences.")
    s.user(request)
    best = rt.best_of(
        s,
        lambda branch: branch.reply(name="answer", max_tokens=max_tokens, logprobs=0),
        n=candidates,
        judge=grade if judged else None,
    )
    s.user("Say the same in one short sentence.")
    return best, s.reply(name="shorter", max_tokens=max_tokens // 2, temperature=0).get()


def main() -> None:
    """Answer one request on the default model, both ways."""
    with rt.Engine() as engine, rt.using(engine):
        for judged in (True, False):
            best, shorter = best_of_n("Explain to a child why leaves are green.", judged=judged).result()
            how = f"grade {best.score:.0f}" if judged else f"mean logprob {best.score:.2f}"
            print(f"candidate {best.index} ({how}): {best.value}\n  in short: {shorter}")


if __name__ == "__main__":
    main()
