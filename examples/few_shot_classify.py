"""Few-shot classification: `select` scores the labels as continuations, nothing is sampled.

Shows a constrained choice and `batch`: the shots are a constant prefix, computed once for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import ramet as rt

SHOTS = (
    ("The battery lasts two days and the screen is gorgeous.", "positive"),
    ("It broke after a week and nobody answered my mail.", "negative"),
    ("Exactly what I hoped for, and it came early.", "positive"),
    ("The handle is loose and the paint smells.", "negative"),
)
LABELS = ("positive", "negative")


@rt.function
def few_shot_classify(s: rt.State, review: str, labels: Sequence[str] = LABELS) -> str:
    """The label of `labels` that continues the pattern best."""
    for text, label in SHOTS:
        s += f"Review: {text}\nSentiment: {label}\n\n"
    s += f"Review: {review}\nSentiment:"
    s += rt.select("label", choices=[f" {label}" for label in labels])
    return str(s["label"]).strip()


def main() -> None:
    """Classify a few reviews as one batch on the default model."""
    reviews = ["I would buy it again at once.", "A waste of money.", "Quiet and pretty.", "Arrived with a crack."]
    with rt.Engine() as engine, rt.using(engine):
        labels = few_shot_classify.batch([{"review": review} for review in reviews]).result()
        for review, label in zip(reviews, labels, strict=True):
            print(f"{label:10} {review}")


if __name__ == "__main__":
    main()
