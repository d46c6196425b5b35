"""Inputs of all workloads, from seeded templates. In: a seed. Out: texts; total functions that read any text.

Nothing is downloaded, and no text depends on a model: what a model says is read by functions that accept anything, so
a small model, or one with random weights, takes the same way through a program as a good one.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence

CITIES = ("Aldea", "Bruck", "Corvo", "Dunmore", "Elbing", "Falun", "Gavi", "Hobart", "Ilmen", "Jaca", "Kotor", "Lund")
TOPICS = ("rivers", "glaciers", "bridges", "harbours", "orchards", "railways", "deserts", "libraries", "mills", "reefs")
VERBS = ("shape", "slow", "feed", "divide", "connect", "protect", "change", "follow", "reach", "cross")
THINGS = ("old towns", "farm land", "trade routes", "quiet valleys", "winter storms", "young forests", "sea birds")
REASONS = ("because snow melts late", "when wind turns north", "as people move inland", "since the last survey")
GOODS = ("oak table", "steel lamp", "wool rug", "clay pot", "paper fan", "brass bell", "glass bowl", "pine shelf")
SHORT, SENTENCE = re.compile(r"\s*\d+[.)]\s*"), re.compile(r"\d+")
INVOICE = {
    "type": "object",
    "properties": {
        "invoice_number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
        "issue_date": {"type": "string", "format": "date"},
        "customer_name": {"type": "string", "maxLength": 12},
        "currency_code": {"enum": ["EUR", "USD", "GBP"]},
        "item_description": {"type": "string", "maxLength": 12},
        "quantity_ordered": {"type": "integer", "minimum": 1, "maximum": 99},
        "payment_received": {"type": "boolean"},
        "total_amount_due": {"type": "integer", "minimum": 1, "maximum": 9999},
    },
    "required": [
        "invoice_number",
        "issue_date",
        "customer_name",
        "currency_code",
        "item_description",
        "quantity_ordered",
        "payment_received",
        "total_amount_due",
    ],
    "additionalProperties": False,
}
REPORT = {
    "type": "object",
    "properties": {
        "overall_grade": {"enum": ["A", "B", "C", "D"]},
        "strongest_dimension": {"enum": ["clarity", "evidence", "structure"]},
        "publishable": {"type": "boolean"},
        "score_out_of_ten": {"type": "integer", "minimum": 1, "maximum": 10},
    },
    "required": ["overall_grade", "strongest_dimension", "publishable", "score_out_of_ten"],
    "additionalProperties": False,
}


class Texts:
    """Writes texts of one seed: the same calls in the same order give the same texts."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def sentence(self) -> str:
        """A fact."""
        pick = self.rng.choice
        return (
            f"In {pick(CITIES)}, {pick(TOPICS)} {pick(VERBS)} {pick(THINGS)} {pick(REASONS)}, "
            f"and {self.rng.randint(2, 999)} of them are known."
        )

    def prose(self, sentences: int) -> str:
        """Facts, one after the other."""
        return " ".join(self.sentence() for _ in range(sentences))

    def question(self) -> str:
        """A question about them."""
        pick = self.rng.choice
        return f"How many {pick(TOPICS)} near {pick(CITIES)} {pick(VERBS)} {pick(THINGS)}?"

    def multiple_choice(self, *, solved: bool) -> str:
        """A sum with four answers; the right one where it is an example."""
        left, right = self.rng.randint(10, 99), self.rng.randint(10, 99)
        offers = [left + right + delta for delta in self.rng.sample(range(-9, 10), 3)] + [left + right]
        order = sorted(set(offers)) or offers
        lines = [f"{letter}. {value}" for letter, value in zip("ABCD", (*order, *offers), strict=False)]
        right_letter = "ABCD"[order.index(left + right)]
        body = f"Question: what is {left} plus {right}?\n" + "\n".join(lines) + "\nAnswer:"
        return f"{body} {right_letter}\n\n" if solved else body

    def invoice(self) -> str:
        """A letter that names what an invoice has."""
        rng = self.rng
        return (
            f"Dear {rng.choice(CITIES)} store, invoice INV-{rng.randint(1000, 9999)} of 2024-{rng.randint(1, 12):02}-"
            f"{rng.randint(1, 28):02} is for {rng.randint(2, 40)} pieces of {rng.choice(GOODS)}. {self.prose(2)} "
            f"The sum is {rng.randint(100, 9000)} EUR."
        )

    def ending(self) -> str:
        """How a story may go on."""
        pick = self.rng.choice
        return f" the {pick(TOPICS)} {pick(VERBS)} {pick(THINGS)}."


# -- what models say, read by functions that accept any text


def points(text: str, count: int) -> list[str]:
    """The points of a numbered list; where there are fewer than `count`, equal pieces of the text."""
    found = [part.strip() for part in SHORT.split(text) if part.strip()]
    if len(found) < count:
        size = max(1, -(-len(text) // count))
        found = [text[at : at + size].strip() or "more" for at in range(0, count * size, size)]
    return [part.replace("\n", " ")[:60] for part in found[:count]]


def integer(text: str, low: int, high: int) -> int:
    """The first number in the text if it is between `low` and `high`, else one that follows from the text."""
    found = SENTENCE.search(text)
    value = int(found[0][:9]) if found else -1
    return value if low <= value <= high else low + zlib.crc32(text.encode()) % (high - low + 1)


def answer(text: str) -> int:
    """A chain's answer: 8 of 10 texts say 0, the others 1 or 2."""
    return (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)[zlib.crc32(text.encode()) % 10]


def retrieved(question: str, documents: Sequence[str], count: int) -> list[int]:
    """The numbers of the documents with most of the question's words, in the documents' own order: prompts with the
    same documents then begin alike."""
    words = set(question.lower().split())
    ranked = sorted(range(len(documents)), key=lambda k: (-len(words & set(documents[k].lower().split())), k))
    return sorted(ranked[:count])
