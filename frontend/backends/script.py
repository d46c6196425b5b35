"""What the mock says: from the answers that a test gives to the answer of one generation.

In: a prompt and a variable. Out: a text, "pending", or an exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramet.frontend.errors import GenerationError


class Pending:
    """The answer that comes later."""

    def __repr__(self) -> str:
        return "Mock.PENDING"


class Script:
    """The answers, with what is consumed of them. Used by the mock's thread alone. `early` holds releases that came
    before their generation."""

    def __init__(self, answers: Any, fail: Mapping[str, BaseException | str]) -> None:
        self._answers = answers
        self._fail = dict(fail)
        self._used: dict[str | None, int] = {}
        self.early: dict[str, list[str]] = {}

    def answer(self, prompt: str, var: str) -> str | Pending:
        """The answer to `prompt` for `var`. Raises what the test wants it to fail with, or `GenerationError` when
        there is none."""
        if var in self._fail:
            error = self._fail[var]
            raise error if isinstance(error, BaseException) else GenerationError(str(error))
        answer, key = self._answers, None
        if isinstance(answer, Mapping):
            key = var if var in answer else "*"
            if key not in answer:
                known = ", ".join(repr(name) for name in answer) or "none"
                raise GenerationError(f'the mock has no answer for variable {var!r}; it has: {known} ("*" is for any)')
            answer = answer[key]
        if callable(answer):
            answer = answer(prompt, var)
        elif isinstance(answer, Sequence) and not isinstance(answer, str):
            answer = self._next(answer, key)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Pending) and self.early.get(var):
            return self.early[var].pop(0)
        if not isinstance(answer, str | Pending):
            raise GenerationError(f"the mock's answer for {var!r} is {answer!r}: it must be a str")
        return answer

    def _next(self, answers: Sequence[Any], key: str | None) -> Any:
        used = self._used.get(key, 0)
        if used >= len(answers):
            raise GenerationError(f"the mock's list of {len(answers)} answers is used up")
        self._used[key] = used + 1
        return answers[used]
