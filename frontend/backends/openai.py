"""Chat completions elsewhere as a backend: OpenAI's API, and servers that speak it.

In: roles, texts and generations. Out: one streamed request per generation, with the messages so far. What cannot be
enforced there is refused before any request.
"""

from __future__ import annotations

import os
import weakref
from types import TracebackType
from typing import Self

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.chat import ChatRemote
from ramet.frontend.backends.constrained import Kind, kind_of
from ramet.frontend.backends.http import RemoteFailure, checked_key, checked_patience, checked_url, connected
from ramet.frontend.backends.loop import Loop
from ramet.frontend.backends.remote import RemoteProgram
from ramet.frontend.errors import EngineError
from ramet.frontend.ir import Header

HOME = "https://api.openai.com/v1"


class OpenAI:
    """Runs programs over `POST {base_url}/chat/completions` of `model`.

    `base_url` and `api_key` default to `OPENAI_BASE_URL` (else OpenAI's own) and `OPENAI_API_KEY`. Text stands in
    messages: `s.user(...)`, `s.assistant(gen(...))`, `s.reply(...)`. A schema, and a type that is written as JSON, is a
    strict `response_format` (OpenAI itself takes objects alone); how white space stands in it is the server's business.
    Refused before any request: text outside of messages, jump="exact" and "off", and, unless the server is `extended`:
    text before a generation in the same assistant turn, select, other constraints, top_k, min_p, repetition_penalty,
    min_tokens, stop_token_ids, ignore_eos, the role "tool". `extended` says that the server understands these fields
    and `continue_final_message`, `/tokenize` (ramet, SGLang and vLLM do); None asks the server's `/server_info`. There
    a select whose choices are one token each is made by `logit_bias`; others fail.

    The program's seed is sent as each generation's own; how far it is kept is the server's business. `logprobs` have no
    token ids (-1). `timeout` (seconds) is the longest silence; `retries` is how often a request is sent again of which
    nothing was received (429 and 5xx by `Retry-After`). Raises `EngineError` for arguments that cannot be meant.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        extended: bool | None = None,
        timeout: float = 120.0,
        retries: int = 2,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise EngineError(f"model={model!r}: name the model that the server shall use")
        self.model = model
        self.url = checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or HOME, "base_url")
        headers = checked_key(api_key if api_key is not None else os.environ.get("OPENAI_API_KEY"))
        checked_patience(timeout, retries)
        if self.url == HOME and not headers:
            raise EngineError("api_key: OpenAI needs one; give api_key=..., or set OPENAI_API_KEY")
        self._loop = Loop(f"OpenAI({model!r})")
        self._finalizer = weakref.finalize(self, self._loop.close)
        try:
            self._http = self._loop.run(connected(self._loop, self.url, headers, timeout, retries))
            kind = self._ask_kind() if extended is None else None
        except BaseException:
            self.close()
            raise
        self.extended = bool(kind) if extended is None else extended
        self._remote = ChatRemote(self._http, model, extended=self.extended, home=self.url == HOME, kind=kind)

    def _ask_kind(self) -> Kind:
        """Whose server it is, of those that are known to understand the extended fields."""
        if self.url == HOME:
            return ""
        root = self.url.removesuffix("/v1")
        try:
            info = self._loop.run(self._http.json("GET", root + "/server_info"))
        except RemoteFailure as failure:
            if failure.kind == "transport":
                raise failure.error() from None
            return ""
        return kind_of(info)

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        return RemoteProgram(self._loop, self._remote, header, deliver)

    def info(self) -> dict[str, object]:
        """The model and its server; "context_length" is 0 where the server does not say. Raises `TransportError` or
        `GenerationError`."""
        try:
            listed = self._loop.run(self._http.json("GET", "/models"))
        except RemoteFailure as failure:
            raise failure.error() from None
        cards = listed.get("data") if isinstance(listed, dict) else None
        card = next((c for c in cards or () if isinstance(c, dict) and c.get("id") == self.model), {})
        return {"model": self.model, "base_url": self.url, "context_length": card.get("max_model_len") or 0}

    def flush_cache(self) -> bool:
        """There is no such request: False."""
        return False

    def close(self) -> None:
        """See `Backend.close`."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OpenAI({self.model!r}, base_url={self.url!r})"
