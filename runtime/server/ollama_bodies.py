"""The bodies of Ollama's requests, as its clients send them. In: JSON. Out: fields of the right types."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from ramet.runtime.server.wire import Body

Number = int | float  # clients write whole numbers as either
LOADING = frozenset(  # options of how a model is loaded, or without an effect where nothing is truncated
    (
        *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap"),
        *("use_mlock", "embedding_only", "num_thread", "num_keep", "mirostat_tau", "mirostat_eta"),
    )
)


def leaves(keep_alive: object) -> bool:
    """Whether a model is to be kept for no time at all: 0, "0", "0s"."""
    if isinstance(keep_alive, str):
        return {each for each in keep_alive if each.isdigit()} == {"0"}
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0


class Options(Body):
    """How to sample. Null is as if it were missing."""

    num_predict: Number | None = Field(default=None, description="0, -1: until a stop or the end of the context")
    temperature: float | None = None
    top_k: Number | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Number | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: Number | None = Field(default=None, description="0: no penalties; else they see the whole text")
    num_ctx: Number | None = Field(default=None, description="at most the context that is served")
    mirostat: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    penalize_newline: Any = None


class Asked(Body):
    """What both kinds of request have."""

    model: str
    stream: bool | None = None
    options: Options | None = None
    format: Any = Field(default=None, description='"json", or a JSON schema')
    keep_alive: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = Field(default=None, description="nothing is ever truncated")
    shift: bool | None = Field(default=None, description="nothing is ever truncated")


class ChatTurn(Body):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = Field(default=None, description="of a tool's message: the function that it answers")
    tool_call_id: str | None = Field(default=None, description="the call that it answers; the calls' order says it too")
    thinking: str | None = Field(default=None, description="of earlier turns; the model is not shown it again")


class ChatRequest(Asked):
    """A conversation; a last message of the assistant is continued. Without messages: whether the model is loaded."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}}
    )

    messages: list[ChatTurn] | None = None
    tools: list[Any] | None = Field(default=None, description="functions that the model may call; at most 128")


class GenerateRequest(Asked):
    """A prompt for the model's template, or (`raw`) as it is. `context` of an earlier answer goes in front."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "default", "prompt": "Why is the sky blue?"}})

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    template: str | None = None
    suffix: str | None = None
    images: list[Any] | None = None


class ShowRequest(Body):
    """A model, by either name of the field."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "default"}})

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
