"""A model's chat template as the text of its role edges.

In: the model's own Jinja source, roles. Out: for each place in a conversation the text that begins or ends a message
there, cut out of whole renderings by their difference; sentinels stand for the contents, which Jinja never sees.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property, lru_cache
from itertools import product
from types import FrameType
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, ModelError
from ramet.runtime.meter import SECONDS
from ramet.runtime.samples import ROLES, SAMPLES, SENTINEL, common_prefix, difference, messages, sentinel
from ramet.runtime.sandbox import compile_template
from ramet.runtime.telling import PROBE, RECENT, Telling, shortened, with_results
from ramet.runtime.text import Tokenizer
from ramet.runtime.tools import described, format_of

Edge = Literal["begin", "end"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)


class ChatTemplate:
    """The edges of one model's chat template. Immutable after construction; may be used from any thread.

    `source` None stands for a model without a template: ChatML where `names` has <|im_start|> and <|im_end|>, otherwise
    "role:\\ncontent\\n\\n". `context` is the model's context in tokens: a template that renders more than 4 x context
    characters, or for longer than 2 s, is refused with `ModelError` (R3), as is one that does not compile.

    `begins_with_bos` says that the template writes the BOS token by itself, before the first message.

    `exact` says that on every sample conversation (all that the template accepts of up to 3 messages, and one longer)
    the edges and the contents, joined, are the template's own rendering; `report` says what differs when they are not:
    - the generation prompt is not how a finished assistant message begins (Qwen3's empty think block, a space in front
      of Mistral's answers): the generation prompt is used for every assistant message;
    - later messages change or move what stands before them: each edge is as it was when it was appended;
    That contents are trimmed is reported too, but keeps `exact`: ramet appends contents as they are.

    `tool_format` is how the model writes tool calls; `supports_tools`: the template itself tells the model of tools;
    `control_in` finds the name of a control token in a text.
    """

    def __init__(
        self,
        source: str | None,
        *,
        context: int,
        bos: str = "",
        eos: str = "",
        names: Sequence[str] = (),
        kwargs: Mapping[str, str | int | float | bool] | None = None,
        control_in: Callable[[str], str | None] = lambda text: None,
    ) -> None:
        chatml = "<|im_start|>" in names and "<|im_end|>" in names
        self.source = source if source is not None else CHATML if chatml else PLAIN
        self.fallback = source is None
        self._most = max(4 * context, 4096)
        self.begins_with_bos = bool(bos) and "bos_token" in self.source
        known: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        self._values = known | dict(kwargs or {})
        self._template = compile_template(self.source)
        self._edge = lru_cache(maxsize=4096)(self._find)
        self._tail = lru_cache(maxsize=4096)(self._find_end)
        self._tellings = lru_cache(maxsize=16)(lambda tools: Telling(self, tools))
        self.supports_tools = False
        self.tool_format, self.control_in, self.longest = format_of(source), control_in, 4 * self._most  # R12's 16 x
        self._watch(self._sample)

    @property
    def exact(self) -> bool:
        """See above; computed when somebody asks, as `report` is."""
        return not self._differences

    @cached_property
    def report(self) -> str:
        """What differs from the template's own rendering, in words."""
        trims = ["the template trims contents; they are appended as they are"] if self._trims() else []
        return "; ".join([*self._differences[:4], *trims])

    @classmethod
    def of(cls, source: str | None, tokenizer: Tokenizer, context: int) -> ChatTemplate:
        """From Jinja source (None: the fallback), with the tokenizer's names of BOS and EOS. Raises `ModelError`."""

        def name(token: int | None) -> str:
            return "" if token is None else tokenizer.token_bytes(token, special=True).decode("utf-8", "replace")

        names = [n for n in ("<|im_start|>", "<|im_end|>") if tokenizer.special_id(n) is not None]
        eos = name(tokenizer.eos[0]) if tokenizer.eos else ""

        def control_in(text: str) -> str | None:
            ids = tokenizer.encode_template(text)
            return next((name(each) for each in ids if tokenizer.is_special(each)), None)

        return cls(source, context=context, bos=name(tokenizer.bos), eos=eos, names=names, control_in=control_in)

    def edge(self, history: Sequence[str], role: str, edge: Edge, tools: Sequence[ir.Tool] = ()) -> str:
        """The text that begins (ends) a message of `role` after messages of the roles `history`, in a conversation
        whose model is told of `tools`.

        The begin of the first message holds all that the template puts before it (BOS, a default system message).
        The begin of an assistant message is the generation prompt. Raises `ConstraintError` for a role, or an order of
        roles, that the template does not take, naming those that it does. For tools' results see `with_results`.
        """
        if tools:
            return self._tellings(tuple(tools)).edge(history, role, edge)
        return with_results(self._direct, history, role, edge)

    def _direct(self, history: Sequence[str], role: str, edge: Edge) -> str:
        short = shortened(history)
        found = self._edge(short if len(short) == len(history) or self._local else tuple(history), role, edge)
        if isinstance(found, ConstraintError):
            raise ConstraintError(found.message)
        return found

    def told_later(self, history: Sequence[str], tools: Sequence[ir.Tool]) -> tuple[str, str]:
        """Role and content of a message that tells of `tools` after the roles `history`, or `ConstraintError`."""
        return self._tellings(tuple(tools)).later(history)

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> ChatTemplate:
        """The same template, rendered with `tools` (as OpenAI's API describes them)."""
        told = copy(self)
        told._values = {**self._values, "tools": list(tools)}
        told._most = self._most + 8 * len(json.dumps(tools))  # templates may indent them
        told._edge, told._tail = lru_cache(128)(told._find), lru_cache(128)(told._find_end)
        told._local = False
        return told

    @cached_property
    def _local(self) -> bool:
        """Whether a long history's edges may be looked up after its shortened form; found out by the first one."""
        try:
            return self._stays_local()
        except ModelError:  # one of them takes too long
            return False

    @cached_property
    def local_with_tools(self) -> bool:
        """Whether edges with tools are the same after a history and after its `shortened` form."""
        return self._local and self.with_tools([described(PROBE)])._stays_local()

    def render(self, messages: Sequence[Mapping[str, str]], *, generation: bool = False) -> str:
        """The template's own rendering of whole messages. Raises jinja2's errors as they are."""
        return self._render([dict(m) for m in messages], generation)

    def _find(self, history: tuple[str, ...], role: str, edge: Edge) -> str | ConstraintError:
        # Errors are returned so that the cache keeps them too.
        if role not in ROLES:
            return ConstraintError(f"role={role!r}: unknown; usable here: {self._usable(history)}")
        try:
            if edge == "end":
                return self._tail((*history, role))
            glued = self._glue(history, role)
            return glued if not history else glued.removeprefix(self._tail(history))
        except _RefusedError as error:
            return ConstraintError(
                f"the model's chat template does not take the roles {', '.join((*history, role))} ({error}); "
                f"usable after {', '.join(history) or 'nothing'}: {self._usable(history)}"
            )

    def _usable(self, history: tuple[str, ...]) -> str:
        return ", ".join(r for r in ROLES if self._glued(history, r) is not None) or "none"

    def _find_end(self, roles: tuple[str, ...]) -> str:
        """What surely follows the last message: the common begin of all that may come after its content (nothing, the
        generation prompt, a message of each role that the template takes there)."""
        after = [self._glued(roles, role) for role in ROLES] + [self._after(roles, False)]
        known = [text for text in after if text is not None]
        if not known:
            raise _RefusedError(self._reason(roles))
        return common_prefix(known)

    def _glue(self, history: tuple[str, ...], role: str) -> str:
        text = self._glued(history, role)
        if text is None:
            raise _RefusedError(self._reason((*history, role)))
        return text

    def _glued(self, history: tuple[str, ...], role: str) -> str | None:
        """What stands between the content of the last message and that of one of `role` after it, or None."""
        if role == "assistant" and history:
            plain, prompt = self._after(history, False), self._after(history, True)
            if prompt is not None and prompt != plain:
                return prompt
        elif role == "assistant":
            return self._opening()
        return self._between(history, role)

    def _opening(self) -> str | None:
        """An assistant message that comes first: up to where the generation prompt, known from after a user, ends."""
        text, after = self._between((), "assistant"), self._glued(("user",), "assistant")
        if text is None or after is None:
            return text
        prompt = after.removeprefix(self._tail(("user",)))
        head, found, _ = text.rpartition(prompt) if prompt else (text, "", "")
        return head + found if found else text

    def _after(self, roles: tuple[str, ...], generation: bool) -> str | None:
        cut = self._cut(roles, generation)
        if cut is None and self._moves(roles):
            cut = self._cut(roles[1:], generation)
        return None if cut is None else cut[-1]

    def _between(self, history: tuple[str, ...], role: str) -> str | None:
        # A template may show a message only together with the next one (Llama 2's system prompt).
        for more in ((), ("user",), ("user", "assistant")):
            cut = self._cut((*history, role, *more), False)
            if cut is not None:
                return cut[len(history)]
        if self._moves((*history, role)):
            return self._between(history[1:], role)
        return None

    def _moves(self, roles: tuple[str, ...]) -> bool:
        """Whether the template takes these roles but does not show the system message at their head (Mistral 0.3 puts
        it before the last user message): edges are then those of the conversation without it."""
        if len(roles) < 3 or roles[0] != "system":
            return False
        try:
            self._render(messages(roles, sentinel), False)
        except _TEMPLATE_ERRORS:
            return False
        return True

    def _cut(self, roles: tuple[str, ...], generation: bool) -> list[str] | None:
        """The rendering cut at its contents, `len(roles) + 1` texts; None when the template refuses the roles or does
        not show every content once and in order."""
        try:
            text = self._render(messages(roles, sentinel), generation)
        except _TEMPLATE_ERRORS:
            return None
        parts: list[str] = []
        for n in range(len(roles)):
            before, found, text = text.partition(sentinel(n))
            if not found:
                return None
            parts.append(before)
        return None if SENTINEL in "".join((*parts, text)) else [*parts, text]

    def _reason(self, roles: tuple[str, ...]) -> str:
        try:
            self._render(messages(roles, sentinel), False)
        except _TEMPLATE_ERRORS as error:
            return str(error) or type(error).__name__
        return "it rewrites, reorders or leaves out a message's content"

    def _render(self, messages: list[dict[str, str]], generation: bool) -> str:
        """Stream a rendering, so that neither its time nor its length can run away."""
        end, parts, size = time.thread_time() + SECONDS, list[str](), 0
        limit = self._most + sum(len(m["content"]) for m in messages)
        for part in self._template.generate(messages=messages, add_generation_prompt=generation, **self._values):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ModelError(f"the chat template renders more than {self._most} characters: it is refused")
            if time.thread_time() > end:
                raise ModelError(f"the chat template takes more than {SECONDS:.0f} s to render: it is refused")
        return "".join(parts)

    def _sample(self) -> None:
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
            for generation in (False, True):
                self._cut(roles, generation)
        cut = self.with_tools([described(PROBE)])._cut(("user",), True) if self.tool_format.native else None
        self.supports_tools = PROBE.name in "".join(cut or ())
        if all(self._cut(roles, False) is None for roles in SAMPLES):
            raise ModelError(f"the chat template takes no conversation that ramet can send: {self._reason(('user',))}")

    def _watch(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread that a deadline ends between two lines of the template, in silent loops too."""
        failure: list[BaseException] = []

        def run() -> None:
            end = time.thread_time() + SECONDS

            def trace(frame: FrameType, event: str, arg: object) -> Any:
                if time.thread_time() > end:
                    raise ModelError(f"the chat template takes more than {SECONDS:.0f} s to render: it is refused")
                return trace

            sys.settrace(trace)
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                failure.append(error)
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=run, name="chat-template-check", daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    @cached_property
    def _differences(self) -> list[str]:
        """What differs from the template's own rendering, over the sample conversations."""
        notes: dict[str, None] = {}
        accepted, end = 0, time.thread_time() + SECONDS
        for roles in SAMPLES:
            whole = self._cut(roles, False)
            if time.thread_time() > end:
                notes |= {f"checked on {accepted} conversations only, for the template is slow": None}
                break
            if whole is None:
                notes |= dict.fromkeys(self._left_out(roles))
                continue
            accepted += 1
            ours = self._edges(roles)
            if ours and whole[-1].startswith(ours[-1]):  # an end that the next message decides is held back
                ours[-1] = whole[-1]
            if ours != whole:
                notes |= {difference(ours, whole, roles): None}
        return list(notes)

    def _left_out(self, roles: tuple[str, ...]) -> list[str]:
        """Whether the template renders these roles, but not the content of one that the edges have promised to show."""
        try:
            text = self._render(messages(roles, sentinel), False)
        except _TEMPLATE_ERRORS:
            return []
        missing = [n for n in range(len(roles) - 1) if sentinel(n) not in text]
        if not missing or self._edges(roles) is None:
            return []
        return [f"({', '.join(roles)}) leaves out message {missing[0] + 1}"]

    def _edges(self, roles: tuple[str, ...]) -> list[str] | None:
        """What stands around the contents when the edges are put together, in the form of `_cut`."""
        parts, text = [], ""
        try:
            for n, role in enumerate(roles):
                parts.append(text + self._direct(roles[:n], role, "begin"))
                text = self._direct(roles[:n], role, "end")
        except ConstraintError:
            return None
        return [*parts, text]

    def _stays_local(self) -> bool:
        """Whether edges are the same after a history and after its `shortened` form, on sample conversations that go
        round in turns: then a long one costs no renderings of its own."""
        turns = (("user", "assistant"), ("user", "assistant", "tool", "assistant"), ("assistant", "tool"))
        end = time.thread_time() + SECONDS
        for head, turn in product(((), ("system",), ("user",), ("system", "user")), turns):
            whole = (head + turn * 8)[: len(head) + 12]
            if time.thread_time() > end:
                return False
            for size in range(RECENT + 4, len(whole)):
                history, edges = whole[:size], (("begin", whole[size]), ("begin", "assistant"), ("end", whole[size]))
                for edge, role in edges:
                    full, short = (self._edge(h, role, edge) for h in (history, shortened(history)))
                    if isinstance(full, ConstraintError) != isinstance(short, ConstraintError):
                        return False
                    if isinstance(full, str) and full != short:
                        return False
        return True

    def _trims(self) -> bool:
        for role in ("user", "assistant"):
            for content in (f" {SENTINEL}\n", f"\n{SENTINEL} "):
                messages = [{"role": "user", "content": content}]
                messages += [{"role": "assistant", "content": content}] if role == "assistant" else []
                try:
                    if self._render(messages, False).count(content) != len(messages):
                        return True
                except _TEMPLATE_ERRORS:
                    return False
        return False


_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class _RefusedError(Exception):
    """The template does not take these roles; the text says why."""
