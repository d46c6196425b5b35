"""Expressions: what can be appended to a state, before it is. SGLang's names and argument order.

In: names, choices, sampling options. Out: small immutable nodes that `State.__iadd__` records. Making one does
nothing else; arguments that can be checked without a program are checked here, at the user's line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, Union

from ramet.frontend.constraints import ARGUMENTS, Wanted, dtyped, wanted
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Jump, SelectMethod
from ramet.frontend.options import check_timeout, checked, given
from ramet.frontend.types import check_choices, check_method
from ramet.frontend.where import user_line

Piece = Union[str, "Expr"]

token_length_normalized: SelectMethod = "token_length_normalized"
greedy_token_selection: SelectMethod = "greedy_token_selection"
unconditional_likelihood_normalized: SelectMethod = "unconditional_likelihood_normalized"
ROLES = ("system", "developer", "user", "assistant", "tool")


class Expr:
    """Something that can be appended to a state (a `Value` is one too); `+` concatenates expressions and strings."""

    __slots__ = ()

    def __add__(self, other: Piece) -> Concat:
        return Concat.of(self, other)

    def __radd__(self, other: str) -> Concat:
        return Concat.of(other, self)


class Concat(Expr):
    """Several things, one after the other."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Piece, ...]) -> None:
        self.parts = parts

    @classmethod
    def of(cls, *pieces: Piece) -> Concat:
        """The concatenation, flattened. Raises `ConstraintError` for anything that is no text, expression or value."""
        flat: list[Piece] = []
        for piece in pieces:
            check_piece(piece)
            flat.extend(piece.parts if isinstance(piece, Concat) else (piece,))
        return cls(tuple(flat))


class GenExpr(Expr):
    """A generation; `options` are the sampling options that were given, `n` the number of samples, `want` what its text
    must be, `method` how it is chosen where that is all there is to do, `timeout` what reading it waits, in seconds."""

    __slots__ = ("method", "n", "name", "options", "timeout", "want", "where")

    def __init__(
        self,
        name: str | None,
        options: Mapping[str, Any],
        n: int,
        want: Wanted,
        where: str,
        *,
        method: SelectMethod,
        timeout: float | None,
    ) -> None:
        self.name = name
        self.options = options
        self.n = n
        self.want = want
        self.where = where
        self.method = method
        self.timeout = timeout


class SelectExpr(Expr):
    """A choice among strings."""

    __slots__ = ("choices", "method", "name", "where")

    def __init__(self, name: str | None, choices: tuple[str, ...], method: SelectMethod, where: str) -> None:
        self.name = name
        self.choices = choices
        self.method = method
        self.where = where


class RoleExpr(Expr):
    """The begin or the end of a message."""

    __slots__ = ("begin", "role", "where")

    def __init__(self, role: str, begin: bool, where: str) -> None:
        self.role = role
        self.begin = begin
        self.where = where


def check_piece(piece: object) -> None:
    """Raise `ConstraintError` unless `piece` can be appended to a state."""
    if isinstance(piece, str | Expr):
        return
    if piece is None:
        remedy = (
            "None cannot be appended; did a function forget to return its expression? (Methods of a state such as "
            "s.user(...) append by themselves; the expression is ramet.user(...))"
        )
    elif isinstance(piece, list | tuple):
        remedy = (
            f"a {type(piece).__name__} cannot be appended to one state; join it, or append it to the branches of a fork"
        )
    else:
        remedy = f"{piece!r} of type {type(piece).__name__} cannot be appended; write str(...) or an f-string"
    raise ConstraintError(remedy, where=user_line())


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: SelectMethod | None = None,
    regex: str | None = None,
    json_schema: str | bool | Mapping[str, Any] | type[Any] | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    *,
    type: Any = str,
    grammar: str | None = None,
    json_whitespace: Literal["fixed", "flexible"] | None = None,
    jump: Jump | None = None,
    logit_bias: Mapping[int, float] | None = None,
    logprobs: int | None = None,
    timeout: float | None = None,
) -> Expr:
    """Generate and define `name`: a value of `type`, by default a text.

    SGLang's arguments in its order, then those that `State.gen` has besides, which mean what they mean there. At most
    one of `type`, `regex` (the whole text), `json_schema`, `grammar`, `choices` and `dtype` says what the text must be;
    `dtype` (int, float, bool, str or their names: a number, True or False, a quoted string) leaves it a text. What is
    one of a few texts is chosen by likelihood, with `choices_method`, unless a `temperature` above 0 or `n` above 1 is
    given: then it is sampled. `n` samples define a list; the text goes on with the first. Raises `ConstraintError`.
    """
    options = given(locals(), "n", "name", "dtype", "type", "choices_method", "timeout", *ARGUMENTS)
    where = user_line()
    arguments = {name: value for name, value in locals().items() if name in ARGUMENTS}
    want = wanted(type, arguments, where) if dtype is None else dtyped(dtype, type, arguments, where)
    samples = _samples(n, where)
    method = token_length_normalized
    if choices_method is not None:
        method = check_method(choices_method, where)
        if not want.choices or samples > 1 or temperature:
            why = "the choice is sampled" if want.choices else "nothing is chosen"
            raise ConstraintError(f"choices_method={choices_method!r}: {why} here; leave it out", where=where)
    wait = check_timeout(timeout, where)
    return GenExpr(name, checked(options, where), samples, want, where, method=method, timeout=wait)


def _samples(n: int | None, where: str) -> int:
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 128):
        raise ConstraintError(f"n={n!r}: must be an integer from 1 to 128", where=where)
    return n or 1


def gen_int(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
) -> Expr:
    """`gen(name, dtype=int)`: the text of an integer."""
    options = given(locals(), "name")
    return gen(name, dtype=int, **options)


def gen_string(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
) -> Expr:
    """`gen(name, dtype=str)`: a string of letters, digits and white space, in quotation marks."""
    options = given(locals(), "name")
    return gen(name, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: SelectMethod = token_length_normalized,
) -> SelectExpr:
    """Choose the best of `choices` by their likelihood after the text so far, append it and define `name`."""
    where = user_line()
    if temperature:
        raise ConstraintError(
            f"temperature={temperature!r}: select takes the most likely choice, so it must be 0", where=where
        )
    return SelectExpr(name, check_choices(choices, where), check_method(choices_method, where), where)


def _message(role: str, expr: Piece | None) -> Concat:
    where = user_line()
    edges = RoleExpr(role, True, where), RoleExpr(role, False, where)
    return Concat.of(edges[0], edges[1]) if expr is None else Concat.of(edges[0], expr, edges[1])


def system(expr: Piece | None = None) -> Concat:
    """A whole system message."""
    return _message("system", expr)


def user(expr: Piece | None = None) -> Concat:
    """A whole user message."""
    return _message("user", expr)


def assistant(expr: Piece | None = None) -> Concat:
    """A whole assistant message: text, generations, or both (`assistant("Sure: " + gen("x"))`)."""
    return _message("assistant", expr)


def system_begin() -> RoleExpr:
    """The begin of a system message."""
    return RoleExpr("system", True, user_line())


def system_end() -> RoleExpr:
    """The end of a system message."""
    return RoleExpr("system", False, user_line())


def user_begin() -> RoleExpr:
    """The begin of a user message."""
    return RoleExpr("user", True, user_line())


def user_end() -> RoleExpr:
    """The end of a user message."""
    return RoleExpr("user", False, user_line())


def assistant_begin() -> RoleExpr:
    """The begin of an assistant message."""
    return RoleExpr("assistant", True, user_line())


def assistant_end() -> RoleExpr:
    """The end of an assistant message."""
    return RoleExpr("assistant", False, user_line())


def image(expr: object) -> NoReturn:
    """SGLang's image input; no vision model is supported: `ConstraintError`."""
    raise ConstraintError("image: no vision model is supported in this version; describe it in text", where=user_line())


def separate_reasoning(expr: Piece | None = None, model_type: str | None = None) -> NoReturn:
    """SGLang's split of reasoning and answer; not built into this version: `ConstraintError`."""
    raise ConstraintError(
        "separate_reasoning: reasoning parsers are not built into this version; generate the reasoning up to its end "
        "marker with stop=..., then the answer with a second gen",
        where=user_line(),
    )
