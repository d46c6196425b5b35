"""A program's operations, from text to token ids: `frontend.ir` in, `runtime.messages` out.

Constant text is merged across operations and calls before it is tokenised, so that how a program was cut into
operations does not show in its tokens; role edges come from the chat template. What is not valid is refused first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Items
from copy import copy
from typing import Literal

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, ContextOverflow, ProgramError, StateError
from ramet.runtime import messages as m
from ramet.runtime.arguments import Compile, bare_context, check_ids, compiled, encoded_choices
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.lowered import Call, Sequence
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer, check_text
from ramet.runtime.tools import check_tools

_EARLY = 256  # characters of pending text from which on its stable part is sent ahead
_EDGES: tuple[Literal["begin"], Literal["end"]] = ("begin", "end")
_UNKNOWN = -1  # tokens of a value that the engine will know
_DUE = -2  # of a value that the client will know
_TAIL = 512  # the longest text before a fork that children encode again to see whether the cut is a token boundary


class Lowering:
    """Lowers one program. Stateful: operations come in program order, in as many calls as one likes; the tokens are the
    same however they are cut into calls. One call at a time (the caller's lock), and not on the engine's thread.

    `context` in tokens. `seed` fixes all sampling noise (with each sequence's path, and not with the order in which
    operations arrive). `max_chars` bounds a text before it is tokenised (R12); by default 16 characters a token of
    context.

    Segments end at a value, a role edge, Tokens, a Gen, Select, Score or Join, and at a Fork. A fork must be a place
    between two tokens, so that its children share everything and compute nothing, and a Join can append exactly what a
    branch added. Text after it is encoded as if there were no fork wherever the place is a token boundary of the joined
    text (it is not where text goes on inside a word or a run of spaces; then both sides are tokenised by themselves).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        context: int,
        seed: int,
        max_chars: int | None = None,
        compile: Compile | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context = context
        self._seed = seed
        self._max_chars = 16 * context if max_chars is None else max_chars
        self._compile = compile or _uncompiled
        self._sequences = {ir.ROOT: Sequence(ir.ROOT)}
        self._ops: set[str] = set()
        self._values: dict[str, int] = {}  # op → tokens of its value, _UNKNOWN or _DUE
        self._call = Call()

    def lower(self, ops: Items[ir.AnyOp]) -> tuple[list[m.AnyOp], list[ir.Rendered]]:
        """The engine's operations, and what the roles among `ops` rendered.

        Raises `ConstraintError` (an argument), `StateError` (a sequence that is closed, joined or unknown) and
        `ContextOverflow`; nothing of the call has happened then. An Append has the id of the first Text or Role merged
        in it; several Appends may have the same.
        """
        self._call = Call()
        for op in ops:
            try:
                self._one(op)
            except ProgramError as error:
                error.branch = error.branch or op.seq
                raise
        for sequence in self._call.sequences.values():
            self._send_stable(sequence)
        return self._commit()

    def length(self, path: str) -> int:
        """Tokens of a sequence that were lowered: a prompt's once a Gen, Select, Score or Fork has followed it."""
        return self._sequences[path].tokens

    def end(self) -> list[m.AnyOp]:
        """No more operations come: the last text of branches that were never closed, but that a Join waits for."""
        self._call = Call()
        for path, sequence in list(self._sequences.items()):
            if sequence.joined and not sequence.closed:
                self._flush(self._touch(path))
        return self._commit()[0]

    def _commit(self) -> tuple[list[m.AnyOp], list[ir.Rendered]]:
        call, self._call = self._call, Call()
        self._sequences |= call.sequences
        self._ops |= call.ops
        self._values |= call.values
        return call.out, call.rendered

    def _touch(self, path: str) -> Sequence:
        call = self._call
        if path not in call.sequences:
            known = self._sequences.get(path)
            if known is None:
                raise StateError(f"seq={path!r}: no such sequence; fork it first")
            call.sequences[path] = copy(known)
        return call.sequences[path]

    def _one(self, op: ir.AnyOp) -> None:
        if (op.id in self._ops or op.id in self._call.ops) and not self._was_due(op):
            raise ConstraintError(
                f"id={op.id!r}: an operation of this id exists already; ids are paths, each used once"
            )
        sequence = self._touch(op.seq)
        if not isinstance(op, ir.Put) and (sequence.closed or sequence.joined):
            if isinstance(op, ir.Close) and (op.now or not sequence.closed):
                self._close(op, sequence)
                self._call.ops.add(op.id)
                return
            what = "closed" if sequence.closed else "joined"
            raise StateError(f"{type(op).__name__} on seq={op.seq!r}: it is {what}; go on in a sequence that is open")
        if isinstance(op, ir.Text):
            self._text(op, sequence)
        elif isinstance(op, ir.Tokens):
            self._tokens(op, sequence)
        elif isinstance(op, ir.Role):
            self._role(op, sequence)
        elif isinstance(op, ir.Tools):
            self._tell_tools(op, sequence)
        elif isinstance(op, ir.Gen):
            self._generate(op, sequence)
        elif isinstance(op, ir.Select):
            self._select(op, sequence)
        elif isinstance(op, ir.Score):
            self._score(op, sequence)
        elif isinstance(op, ir.Fork):
            self._fork(op, sequence)
        elif isinstance(op, ir.Join):
            self._join(op, sequence)
        elif isinstance(op, ir.Put):
            self._put(op)
        elif isinstance(op, ir.Close):
            self._close(op, sequence)
        self._call.ops.add(op.id)

    def _was_due(self, op: ir.AnyOp) -> bool:
        due = self._call.values.get(op.id, self._values.get(op.id)) == _DUE
        return due and isinstance(op, ir.Put) and not op.due

    # -- text

    def _text(self, op: ir.Text, sequence: Sequence) -> None:
        for part in op.parts:
            if isinstance(part, ir.Ref):
                tokens = self._call.values.get(part.op, self._values.get(part.op))
                if tokens is None:
                    raise ConstraintError(f"Ref({part.op!r}): no earlier Gen, Select or Put has this id")
                self._flush(sequence)
                self._open(sequence, op.id)
                sequence.grown = sequence.grown or tokens < 0
                self._append(sequence, op.id, part.op, max(tokens, 0))
            elif part:
                check_text(part)
                if not sequence.pending:
                    sequence.pending_op = op.id
                sequence.pending += part
                self._bound(sequence)

    def _tokens(self, op: ir.Tokens, sequence: Sequence) -> None:
        check_ids("ids", op.ids, self._tokenizer)
        self._flush(sequence)
        sequence.started = sequence.started or bool(op.ids)
        self._append(sequence, op.id, op.ids, len(op.ids))

    def _bound(self, sequence: Sequence) -> None:
        size = len(sequence.pending)
        if size > self._max_chars:
            raise ContextOverflow(
                f"a text of {size} characters is longer than the limit of {self._max_chars} (context: {self._context} "
                "tokens); shorten it"
            )

    def _open(self, sequence: Sequence, op: str) -> None:
        """Plain text at the start of a sequence gets the BOS token of models that were trained with one."""
        if not sequence.started:
            sequence.started = True
            if self._tokenizer.add_bos and self._tokenizer.bos is not None:
                sequence.bos = True
                self._append(sequence, op, (self._tokenizer.bos,), 1)

    def _flush(self, sequence: Sequence) -> None:
        """Tokenise and append what is pending: a segment ends here."""
        text, sequence.pending = sequence.pending, ""
        if text:
            self._append_text(sequence, text)
        sequence.tail = ""

    def _append_text(self, sequence: Sequence, text: str) -> None:
        start = not sequence.started
        self._open(sequence, sequence.pending_op)
        ids = self._continued(sequence.tail, text) if sequence.tail else self._tokenizer.encode(text, start=start)
        self._append(sequence, sequence.pending_op, tuple(ids), len(ids))

    def _continued(self, tail: str, text: str) -> list[int]:
        """The ids of `text` after `tail`, which is tokenised: those of the whole where it has a boundary there."""
        before, whole = self._tokenizer.encode(tail), self._tokenizer.encode(tail + text)
        return whole[len(before) :] if whole[: len(before)] == before else self._tokenizer.encode(text)

    def _append(self, sequence: Sequence, op: str, part: tuple[int, ...] | str, tokens: int) -> None:
        sequence.tokens += tokens
        if sequence.tokens > self._context:
            raise ContextOverflow(
                f"sequence {sequence.path} has at least {sequence.tokens} tokens and the model's context is "
                f"{self._context}; shorten the text",
                branch=sequence.path,
            )
        if part:
            self._call.out.append(m.Append(op, sequence.path, (part,)))

    def _send_stable(self, sequence: Sequence) -> None:
        """Send the part of a long pending text that no continuation can change: the engine computes it early."""
        if len(sequence.pending) < _EARLY or sequence.tail or sequence.closed:
            return
        stable, tail = self._tokenizer.stable_split(sequence.pending)
        if stable:
            self._append_text(sequence, stable)
            sequence.pending = tail

    # -- roles

    def _role(self, op: ir.Role, sequence: Sequence) -> None:
        if op.edge == "begin":
            if sequence.role:
                raise ConstraintError(
                    f"role={op.role!r}: the {sequence.role!r} message is still open; end it before the next begins"
                )
            text = self._template.edge(sequence.history, op.role, "begin", sequence.tools)
            self._edge(op, sequence, text)
            sequence.role = op.role
            return
        if sequence.role != op.role:
            is_open = f"the open message is {sequence.role!r}" if sequence.role else "no message is open"
            raise ConstraintError(f"role={op.role!r}: {is_open}; begin a {op.role!r} message before you end it")
        text = self._template.edge(sequence.history, op.role, "end", sequence.tools)
        self._edge(op, sequence, text)
        sequence.role = ""
        sequence.history = (*sequence.history, op.role)

    def _edge(self, op: ir.Role | ir.Tools, sequence: Sequence, text: str) -> None:
        """Append an edge. Spaces at its end are the first of the content: they belong to its first word's token."""
        self._flush(sequence)
        body = text.rstrip(" ")
        ids = tuple(self._tokenizer.encode_template(body, start=not sequence.started)) if body else ()
        doubled = sequence.bos and ids[:1] == (self._tokenizer.bos,) and self._template.begins_with_bos
        if doubled and not sequence.history and not sequence.role:
            ids = ids[1:]  # plain text before the first message has brought the BOS token already
        sequence.started = sequence.started or bool(ids)
        self._append(sequence, op.id, ids, len(ids))
        sequence.pending, sequence.pending_op = text[len(body) :], op.id
        self._call.rendered.append(ir.Rendered(op.id, op.seq, text))

    def _tell_tools(self, op: ir.Tools, sequence: Sequence) -> None:
        """Before the first message the template tells of them; later a message does, begun and ended here."""
        check_tools(op.tools)
        if sequence.role:
            raise ConstraintError(f"tools: the {sequence.role!r} message is open; tell of tools before or after it")
        if not sequence.history:
            sequence.tools = (*sequence.tools, *op.tools)
            self._call.rendered.append(ir.Rendered(op.id, op.seq, ""))
            return
        role, content = self._template.told_later(sequence.history, op.tools)
        begin, end = (self._template.edge(sequence.history, role, edge, sequence.tools) for edge in _EDGES)
        self._edge(op, sequence, begin)
        sequence.role = role
        sequence.pending += content
        self._edge(op, sequence, end)
        sequence.role, sequence.history = "", (*sequence.history, role)
        self._call.rendered[-2:] = [ir.Rendered(op.id, op.seq, begin + content + end)]

    # -- calls

    def _generate(self, op: ir.Gen, sequence: Sequence) -> None:
        check_ids("stop_token_ids", op.sampling.stop_token_ids, self._tokenizer)
        check_ids("logit_bias", op.sampling.logit_bias, self._tokenizer)
        for stop in op.sampling.stop:
            check_text(stop)
        constraint = op.constraint
        if isinstance(constraint, ir.Calls):
            constraint = self._template.tool_format.structure(constraint)
        grammar = compiled(op, constraint, self._compile)
        self._ready(op, sequence)
        if sequence.tokens >= self._context:
            raise ContextOverflow(
                f"the prompt has at least {sequence.tokens} tokens, the model's context is {self._context}: no room to "
                "generate; shorten the text"
            )
        seed = self._seed if op.sampling.seed is None else op.sampling.seed
        found = (grammar.program, op.jump, grammar.longest)
        self._call.out.append(m.Generate(op.id, op.seq, op.sampling, branch_seed(seed, op.seq), *found))
        self._call.values[op.id] = _UNKNOWN

    def _select(self, op: ir.Select, sequence: Sequence) -> None:
        choices = encoded_choices(op.choices, self._tokenizer, self._max_chars)
        context = bare_context(op.method, self._tokenizer)
        self._ready(op, sequence)
        longest = sequence.tokens + max(map(len, choices))
        if longest > self._context:
            raise ContextOverflow(
                f"the prompt and its longest choice have at least {longest} tokens, the model's context is "
                f"{self._context}; shorten the text"
            )
        self._call.out.append(m.Choose(op.id, op.seq, choices, op.method, context))
        self._call.values[op.id] = _UNKNOWN

    def _score(self, op: ir.Score, sequence: Sequence) -> None:
        self._ready(op, sequence)
        self._call.out.append(m.Score(op.id, op.seq, op.start, op.top))

    def _ready(self, op: ir.Gen | ir.Select | ir.Score, sequence: Sequence) -> None:
        """Everything before a call is appended, and there is something."""
        self._flush(sequence)
        self._open(sequence, op.id)
        if not sequence.tokens and not sequence.grown:
            raise ConstraintError("empty prompt: append text or a role before the first gen, select or score")
        sequence.grown = sequence.grown or not isinstance(op, ir.Score)

    # -- branches

    def _fork(self, op: ir.Fork, sequence: Sequence) -> None:
        tail = self._tokenizer.stable_split(sequence.pending)[1] if sequence.pending else sequence.tail
        self._flush(sequence)
        sequence.tail = tail if len(tail) <= _TAIL else ""
        if not op.into:
            raise ConstraintError("into=(): a fork needs at least one child")
        for path in op.into:
            if path in self._sequences or path in self._call.sequences:
                raise ConstraintError(f"into: sequence {path!r} exists already; sequence names are used once")
            child = copy(sequence)
            child.path, child.began = path, (sequence.history, sequence.role)
            self._call.sequences[path] = child
        self._call.out.append(m.Fork(op.id, op.seq, op.into))

    def _join(self, op: ir.Join, sequence: Sequence) -> None:
        branches = []
        for path in op.branches:
            branch = self._touch(path)
            if path == op.seq or op.seq.startswith(path + ".") or path == ir.ROOT:
                raise ConstraintError(f"branches: {path!r} is not a branch of {op.seq!r}; join only what was forked")
            if branch.joined:
                raise StateError(f"branches: {path!r} is joined already; each branch is joined once")
            if branch.role != branch.began[1]:
                raise ConstraintError(
                    f"branches: {path!r} has the message {branch.role!r} open, its fork had "
                    f"{branch.began[1]!r}; end (begin) the message before the join"
                )
            branches.append(branch)
        self._flush(sequence)
        for branch in branches:
            branch.joined = True
            sequence.history += branch.history[len(branch.began[0]) :]
        sequence.grown = sequence.started = True
        self._call.out.append(m.Join(op.id, op.seq, op.branches))

    def _put(self, op: ir.Put) -> None:
        if len(op.value) > self._max_chars:
            raise ContextOverflow(
                f"a value of {len(op.value)} characters is longer than the limit of {self._max_chars}"
            )
        if op.due:
            self._call.values[op.id] = _DUE
            return
        check_ids("tokens", op.tokens or (), self._tokenizer)
        ids = tuple(self._tokenizer.encode(op.value)) if op.tokens is None else op.tokens
        self._call.out.append(m.Put(op.id, op.seq, ids, op.failed))
        self._call.values[op.id] = _UNKNOWN if op.failed else len(ids)

    def _close(self, op: ir.Close, sequence: Sequence) -> None:
        if not op.now:
            self._flush(sequence)
        sequence.pending = ""
        sequence.closed = True
        self._call.out.append(m.Close(op.id, op.seq, op.now))


def _uncompiled(constraint: ir.Constraint) -> Compiled:
    raise ConstraintError(f"{type(constraint).__name__}: constraints are not compiled here")


def branch_seed(seed: int, path: str) -> int:
    """The 64-bit seed of a sequence's noise: BLAKE2b of the program's seed and the sequence's path, nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{path}".encode(), digest_size=8).digest(), "little")
