"""The examples with typed values on the Mock backend."""

from __future__ import annotations

import json
from datetime import date

import ramet as rt
from ramet.examples.json_extract import MAILS, Item, Order, json_extract
from ramet.examples.typed_judge import CRITERIA, Judgement, Verdict, typed_judge
from ramet.frontend.ir import Forked

WAIT = 20.0


def order(count: int) -> str:
    items = [{"product": "apples", "count": count}]
    return json.dumps({"customer": "Ann", "items": items, "due": "2026-05-04", "urgency": "low"})


def test_json_extract_returns_orders_and_the_errors_of_single_rows() -> None:
    def answer(prompt: str, var: str) -> str:
        return order(0) if "Urgent" in prompt else order(3)

    with rt.using(rt.Mock(answer)):
        rows = [{"mail": mail, "max_tokens": 4 if "candles" in mail else 200} for mail in MAILS]
        found = json_extract.batch(rows, on_error="return").result()
    expected = Order(customer="Ann", items=[Item(product="apples", count=3)], due=date(2026, 5, 4), urgency="low")
    assert found[0] == expected
    assert isinstance(found[1], rt.TruncatedError)
    assert found[1].partial == order(3)[: len(found[1].partial)]
    assert isinstance(found[2], rt.ParseError)
    assert "at /items/0/count" in found[2].message


def test_typed_judge_collects_verdicts() -> None:
    verdict = json.dumps({"reason": "Fine.", "score": 4})
    run = typed_judge.using(backend=rt.Mock({"verdict": verdict, "words": "42", "publish": "False"}))("Q?", "A.")
    assert run.result(WAIT) == Judgement(dict.fromkeys(CRITERIA, Verdict("Fine.", 4)), 42, False)
    assert [len(event.into) for event in run.events() if isinstance(event, Forked)] == [3]
