"""What a branch says: its text, its messages, how its generations went.

In: the core of a state. Out: text, messages and SGLang's meta info, once everything on the branch is done.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from ramet.frontend.core import Core
from ramet.frontend.entries import Entry
from ramet.frontend.ir import Meta, Role
from ramet.frontend.values import Value
from ramet.frontend.waiting import refuse_blocking, wait, wait_async


def _pending(core: Core) -> list[Future[str]]:
    return [future for entry in core.seq.timeline() for future in entry.waits_for() if not future.done()]


def settle(core: Core, raising: bool = True) -> BaseException | None:
    """Wait in this thread until every operation of the branch is done. The first failure is raised, or returned."""
    core.execution.outbox.flush()
    if not core.execution.outcome.done():
        refuse_blocking(core.execution.loop, "the text")
    for future in _pending(core):
        with core.execution.record.waiting("the text"):
            wait(future, None, "the text")
    return _first_failure(core, raising)


async def settle_async(core: Core) -> None:
    """Wait in this event loop until every operation of the branch is done; raise the first failure."""
    core.execution.outbox.flush()
    for future in _pending(core):
        with core.execution.record.waiting("the text"):
            await wait_async(future, None, "the text")
    _first_failure(core, True)


def _first_failure(core: Core, raising: bool) -> BaseException | None:
    for entry in core.seq.timeline():
        for error in (entry.error, *(future.exception() for future in entry.waits_for())):
            if error is not None:
                core.execution.record.saw(error)
                if raising:
                    raise error
                return error
    return None


def full_text(core: Core) -> str:
    """The text of a branch whose operations are done."""
    return "".join(entry.known_text() for entry in core.seq.timeline())


def chat_messages(core: Core) -> list[dict[str, str]]:
    """The messages that have ended, of a branch whose operations are done."""
    messages: list[dict[str, str]] = []
    content: list[str] | None = None
    for entry in core.seq.timeline():
        if isinstance(entry.op, Role) and entry.op.edge == "begin":
            content = []
        elif isinstance(entry.op, Role) and content is not None:
            messages.append({"role": entry.op.role, "content": "".join(content)})
            content = None
        elif content is not None:
            content.append(entry.known_text())
    return messages


def meta_info(value: Value[Any]) -> Any:
    """SGLang's meta info of a variable; waits for it. A list for a list value."""
    if value.parts:
        return [meta_info(part) for part in value.parts]
    meta = value.meta
    entry = value.entry
    assert entry is not None
    return entry_info(entry, meta)


def entry_info(entry: Entry, meta: Meta) -> dict[str, Any]:
    """SGLang's meta info of a finished generation or choice."""
    finish = {"type": meta.finish_reason} | ({"matched": meta.matched} if meta.matched is not None else {})
    info: dict[str, Any] = {
        "id": entry.id,
        "finish_reason": finish,
        "prompt_tokens": meta.prompt_tokens,
        "completion_tokens": meta.completion_tokens,
        "cached_tokens": meta.cached_tokens,
        "e2e_latency": meta.queued_seconds + meta.seconds,
        "meta": meta,
    }
    if meta.logprobs:
        info["output_token_logprobs"] = [[lp.logprob, lp.token, lp.text] for lp in meta.logprobs]
        info["output_top_logprobs"] = [[[p, token, text] for token, text, p in lp.top] for lp in meta.logprobs]
    if entry.kind == "select":
        info["normalized_prompt_logprobs"] = list(meta.scores)
        info["input_token_logprobs"] = [list(choice) for choice in meta.choice_logprobs]
    return info
