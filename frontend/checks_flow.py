"""Checks of what follows what: messages, branches, variables, the edges of text.

In: a path of a plan. Out: diagnostics. Each check is one pass over the path's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ramet.frontend.checks_calls import label
from ramet.frontend.diagnostics import Diagnostic
from ramet.frontend.ir import ROOT, Fork, Gen, Join, Role, Select, Text
from ramet.frontend.lineage import Lineage, Reached, alike, inherit, variable
from ramet.frontend.planned import Const, Return, Step

_INSTRUCTIONS = ("system", "developer")


def flow(line: Lineage, reached: Reached) -> Iterator[Diagnostic]:
    """Everything that depends on what stands before or after a step. `reached`: of all paths."""
    yield from _roles(line)
    yield from _open_roles(line)
    yield from _outside(line)
    yield from _trailing(line)
    yield from _alike(line)
    if line.returns:
        yield from _overwritten(line, reached)
        yield from _unread_branches(line, reached)
        yield from _unread_values(line, reached)


# --- messages ---


def _roles(line: Lineage) -> Iterator[Diagnostic]:
    last: dict[str, str] = {}
    turned: dict[str, bool] = {}  # somebody but the assistant has spoken
    for step in line.steps:
        inherit(last, step)
        inherit(turned, step)
        op = step.op
        if not isinstance(op, Role) or op.edge != "begin":
            continue
        before, first = last.get(op.seq, ""), not turned.get(op.seq)
        last[op.seq] = op.role
        turned[op.seq] = turned.get(op.seq, False) or op.role not in _INSTRUCTIONS
        if op.role in _INSTRUCTIONS and before and before not in _INSTRUCTIONS:
            message = f"a {op.role} message after one of {before!r}: most chat templates refuse it, or move it"
            yield line.found("role-order", "warning", step, message, "say it first")
        elif op.role == "assistant" and first:
            message = "the conversation begins with the assistant: many chat templates refuse it"
            yield line.found("role-order", "warning", step, message, "put a user message before it")
        elif op.role == before and op.role in ("user", "assistant"):
            message = f"two {op.role} messages in a row: templates that insist on taking turns refuse it"
            yield line.found("role-order", "note", step, message, "put both texts into one message")


def _open_roles(line: Lineage) -> Iterator[Diagnostic]:
    if not line.returns:
        return
    for seq, steps in line.own.items():
        edges = [step for step in steps if isinstance(step.op, Role)]
        if not edges or seq in line.closed or any(isinstance(step.op, Fork) for step in steps):
            continue
        op = edges[-1].op
        if isinstance(op, Role) and op.edge == "begin":
            message = f"this {op.role} message is never ended"
            yield line.found("role-open", "warning", edges[-1], message, f"end it: {op.role}_end(), or a `with` block")


def _outside(line: Lineage) -> Iterator[Diagnostic]:
    """Generations between messages: most often a forgotten `assistant`."""
    inside: dict[str, bool] = {}
    for step in line.steps:
        inherit(inside, step)
        op = step.op
        if isinstance(op, Role):
            inside[op.seq] = op.edge == "begin"
        elif isinstance(op, Gen | Select) and inside.get(op.seq) is False:
            yield line.found(
                "outside-message",
                "warning",
                step,
                f"{label(step)} stands outside any message, though the program has messages: a chat model has not been "
                "told that it is its turn",
                "use s.reply(...), or put it into s.assistant(...)",
            )


def _trailing(line: Lineage) -> Iterator[Diagnostic]:
    space: dict[str, bool] = {}
    for step in line.steps:
        inherit(space, step)
        op = step.op
        if isinstance(op, Gen | Select) and space.get(op.seq) and not _spaced(op):
            yield line.found(
                "trailing-space",
                "note",
                step,
                f"the text before {label(step)} ends in a space, but most tokens of words begin with theirs: the model "
                "goes on from a place that it has rarely seen",
                "leave the space out, and strip what is generated",
            )
        if isinstance(op, Text) and step.parts:
            end = step.parts[-1]
            space[op.seq] = isinstance(end, str) and end.endswith(" ")
        elif not isinstance(op, Fork):
            space[op.seq] = False


def _spaced(op: Gen | Select) -> bool:
    return op.constraint is not None if isinstance(op, Gen) else any(choice[:1] == " " for choice in op.choices)


# --- branches ---


def _unread_branches(line: Lineage, reached: Reached) -> Iterator[Diagnostic]:
    for step in line.steps:
        op = step.op
        if not isinstance(op, Fork) or (ROOT in line.closed and len(op.into) == 1):
            continue  # a state that adopts a branch goes on from a fork of one
        unread = [seq for seq in op.into if not _is_read(line, reached, seq)]
        if unread:
            of = f"{len(unread)} of {len(op.into)} branches" if len(op.into) > 1 else "the branch"
            yield line.found(
                "unread-branch",
                "warning",
                step,
                f"{of} made here {'are' if len(unread) > 1 else 'is'} never read, joined or gone on from",
                "read what it generates (branches.gather), join it, or fork fewer",
            )


def _is_read(line: Lineage, reached: Reached, seq: str) -> bool:
    if line.made(seq) in reached.closed or line.made(seq) in reached.joined:
        return True
    for step in line.own[seq]:
        if line.made(step.op.id) in reached.used:
            return True
        if isinstance(step.op, Fork) and any(_is_read(line, reached, child) for child in step.op.into):
            return True
    return False


def _alike(line: Lineage) -> Iterator[Diagnostic]:
    """Branches that say the same and draw no noise of their own."""
    for step in line.steps:
        op = step.op
        if not isinstance(op, Fork):
            continue
        texts = [line.own[seq] for seq in op.into]
        mine = line.own[op.seq]
        rest = mine[mine.index(step) + 1 :]
        if rest and rest[0].where == step.where and texts:  # n samples: the first goes on here
            texts.append(rest[: sum(not _is_close(each) for each in texts[0])])
        groups: dict[tuple[object, ...], int] = {}
        for steps in texts:
            if _repeatable(steps):
                key = tuple(alike(each) for each in steps if not _is_close(each))
                groups[key] = groups.get(key, 0) + 1
        count = max(groups.values(), default=0)
        if count > 1:
            yield line.found(
                "branch-alike",
                "warning",
                step,
                f"{count} of the {len(texts)} branches made here give the same text: they say the same, and their "
                "generations are greedy or have one seed",
                "give them a temperature above 0 and no seed of their own, or fork fewer",
            )


def _is_close(step: Step) -> bool:
    return step.op.__struct_config__.tag == "close"


def _repeatable(steps: Sequence[Step]) -> bool:
    """It generates, and the same each time."""
    made = [step.op for step in steps if isinstance(step.op, Gen)]
    if not made or any(isinstance(step.op, Fork | Join) for step in steps):
        return False
    return all(op.sampling.temperature == 0 or op.sampling.seed is not None for op in made)


# --- variables ---


def _overwritten(line: Lineage, reached: Reached) -> Iterator[Diagnostic]:
    for steps in line.own.values():
        defined: dict[str, Step] = {}
        for step in steps:
            name = variable(step) if isinstance(step.op, Gen | Select) else ""
            if not name:
                continue
            before = defined.get(name)
            if before is not None and before.where != step.where and line.made(before.op.id) not in reached.used:
                message = f"{name!r} is defined again at {step.where} before anything has read this value"
                yield line.found("overwritten", "warning", before, message, "give one of them another name")
            defined[name] = step


def _unread_values(line: Lineage, reached: Reached) -> Iterator[Diagnostic]:
    """Values at the end of their sequence that have no name, in a program that returns something else."""
    assert isinstance(line.end, Return)
    if line.end.value == Const(None):
        return
    for seq, steps in line.own.items():
        made = [step for step in steps if isinstance(step.op, Gen | Select)]
        if not made or variable(made[-1]):
            continue
        if line.made(seq) in reached.joined or line.made(made[-1].op.id) in reached.used:
            continue
        if seq != ROOT and not _is_read(line, reached, seq):
            continue  # the whole branch is not read
        after = steps[steps.index(made[-1]) :]
        if not any(isinstance(step.op, Fork) for step in after) and after[-1].op.seq == seq:
            yield line.found(
                "unread-value",
                "warning",
                made[-1],
                f"{label(made[-1])} is never read, and nothing comes after it: it is generated for nobody",
                "read or return it, give it a name, or leave it out",
            )
