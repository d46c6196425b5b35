"""What calls are given, checked and turned into token ids before anything of them reaches the engine.

In: arguments of an operation and the model's tokenizer. Out: token ids, or a `ConstraintError` or `ContextOverflow`
that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ramet.frontend.errors import ConstraintError, ContextOverflow, EngineError
from ramet.frontend.ir import Constraint, Gen, SelectMethod
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.text import Tokenizer

Ids = tuple[int, ...]
Compile = Callable[[Constraint], Compiled]
UNCONSTRAINED = Compiled(program="")


def check_ids(name: str, ids: Iterable[int], tokenizer: Tokenizer) -> None:
    """Raise `ConstraintError` unless all of `ids` are tokens of the model."""
    vocab = tokenizer.vocab_size
    for token in ids:
        if not 0 <= token < vocab:
            raise ConstraintError(f"{name}: {token} is not a token id; ids of this model are 0 to {vocab - 1}")


def encoded_choices(choices: Sequence[str], tokenizer: Tokenizer, max_chars: int) -> tuple[Ids, ...]:
    """The ids of each choice; distinct and not empty."""
    if not choices:
        raise ConstraintError("choices=(): select needs at least one choice")
    seen: dict[Ids, str] = {}
    for choice in choices:
        if len(choice) > max_chars:
            raise ContextOverflow(f"a choice of {len(choice)} characters: at most {max_chars}")
        ids = tuple(tokenizer.encode(choice))
        if not ids:
            raise ConstraintError(f"choices: {choice!r} has no tokens; each choice needs text")
        if ids in seen:
            raise ConstraintError(f"choices: {seen[ids]!r} and {choice!r} are the same tokens; make them distinct")
        seen[ids] = choice
    return tuple(seen)


def bare_context(method: SelectMethod, tokenizer: Tokenizer) -> Ids:
    """What a method scores choices after to know their likelihood without the prompt; () where it does not."""
    if method != "unconditional_likelihood_normalized":
        return ()
    context = (tokenizer.bos,) if tokenizer.bos is not None else tokenizer.eos[:1]
    if not context:
        raise ConstraintError(
            f"method={method!r}: the model has neither a begin nor an end token to score choices after; "
            "use token_length_normalized"
        )
    return context


def compiled(op: Gen, constraint: Constraint | None, compile: Compile) -> Compiled:
    """What the engine builds the automaton of `constraint` from. Raises `ConstraintError` for one that is not valid, or
    whose texts are all longer than the op may be."""
    if constraint is None:
        return UNCONSTRAINED
    try:
        found = compile(constraint)
    except EngineError as error:
        raise ConstraintError(f"the constraint could not be compiled: {error}") from None
    most = op.sampling.max_tokens
    if most is not None and found.shortest > most:
        raise ConstraintError(
            f"max_tokens={most}: the shortest text that the constraint allows has {found.shortest} tokens; raise it"
        )
    return found
