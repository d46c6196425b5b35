"""Extraction: an order out of a mail, as a checked object, for all mails at once.

Shows a typed value: the type is what the model's text is held to, whatever the model is, and what the text is read as.
Field names, quotation marks and brackets are known beforehand and cost no decode steps. A row whose answer does not fit
into `max_tokens` is an error of its own; the others stand.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, Field

import ramet as rt

Words = Annotated[str, Field(max_length=30)]
MAILS = (
    "Hi, three crates of apples and a sack of flour, please, by the 4th of May 2026. Regards, Ann Lee",
    "Please send 12 boxes of candles to Bo Berg. No hurry.",
    "Urgent!! We need 40 blankets before 2026-12-01. Chris Cole, Red Cross",
)


class Item(BaseModel):
    """One line of an order."""

    product: Words
    count: Annotated[int, Field(ge=1, le=999)]


class Order(BaseModel):
    """What a mail asks for."""

    customer: Words
    items: Annotated[list[Item], Field(min_length=1, max_length=4)]
    due: date | None
    urgency: Literal["low", "normal", "high"]


SHOT_MAIL = "Hello, Dana Diaz here. Could I have two ladders and 15 buckets? I need them on June 9, 2026."
SHOT = Order(
    customer="Dana Diaz",
    items=[Item(product="ladder", count=2), Item(product="bucket", count=15)],
    due=date(2026, 6, 9),
    urgency="normal",
)


@rt.function(temperature=0)
def json_extract(s: rt.State, mail: str, max_tokens: int = 200) -> Order:
    """The order in `mail`."""
    s.system("You read mails of customers and write down what they order, as JSON.")
    s.user(SHOT_MAIL)
    s.assistant(json.dumps(SHOT.model_dump(mode="json")))
    s.user(mail)
    return s.reply(Order, name="order", max_tokens=max_tokens).get()


def main() -> None:
    """Extract the orders of a few mails as one batch on the default model."""
    with rt.Engine() as engine, rt.using(engine):
        for mail, order in zip(MAILS, json_extract.batch(MAILS, on_error="return").result(), strict=True):
            print(mail)
            print("  ", order.model_dump() if isinstance(order, Order) else f"no order: {order}")


if __name__ == "__main__":
    main()
