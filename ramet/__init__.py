"""Many branches, one root: a DSL for multi-call LLM programs and the engine that runs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ramet.frontend.backends.base import Backend
from ramet.frontend.backends.mock import Mock
from ramet.frontend.batch import Batch
from ramet.frontend.branches import Branches
from ramet.frontend.errors import (
    Aborted,
    BudgetExceeded,
    ConstraintError,
    ContextOverflow,
    EngineError,
    GenerationError,
    ModelError,
    ParseError,
    ProgramError,
    ProgramTimeout,
    RametError,
    StateError,
    ToolError,
    TransportError,
    TruncatedError,
    UnknownVariable,
)
from ramet.frontend.expressions import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    greedy_token_selection,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    token_length_normalized,
    unconditional_likelihood_normalized,
    user,
    user_begin,
    user_end,
)
from ramet.frontend.host import flush_cache, get_server_info, set_default_backend, using
from ramet.frontend.ir import Ended, Event, Failed, Finished, Forked, Joined, Started, Token, Usage
from ramet.frontend.program import Program, function
from ramet.frontend.run import Run
from ramet.frontend.state import State
from ramet.frontend.tools import Call, ToolReply
from ramet.frontend.values import Value, agather, gather

if TYPE_CHECKING:
    from ramet.frontend.backends.endpoint import Endpoint
    from ramet.frontend.backends.endpoint import Endpoint as RuntimeEndpoint
    from ramet.frontend.backends.engine import Engine
    from ramet.frontend.backends.openai import OpenAI

__all__ = [
    "Aborted",
    "Backend",
    "Batch",
    "Branches",
    "BudgetExceeded",
    "Call",
    "ConstraintError",
    "ContextOverflow",
    "Ended",
    "Endpoint",
    "Engine",
    "EngineError",
    "Event",
    "Failed",
    "Finished",
    "Forked",
    "GenerationError",
    "Joined",
    "Mock",
    "ModelError",
    "OpenAI",
    "ParseError",
    "Program",
    "ProgramError",
    "ProgramTimeout",
    "RametError",
    "Run",
    "RuntimeEndpoint",
    "Started",
    "State",
    "StateError",
    "Token",
    "ToolError",
    "ToolReply",
    "TransportError",
    "TruncatedError",
    "UnknownVariable",
    "Usage",
    "Value",
    "agather",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gather",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "using",
]

LAZY = {  # they pull the runtime, or httpx: imported when they are asked for
    "Endpoint": ("endpoint", "Endpoint"),
    "Engine": ("engine", "Engine"),
    "OpenAI": ("openai", "OpenAI"),
    "RuntimeEndpoint": ("endpoint", "Endpoint"),  # SGLang's name
}
ELSEWHERE = ("Runtime", "Anthropic", "VertexAI", "LiteLLM")


def __getattr__(name: str) -> object:
    if name in LAZY:
        module, attribute = LAZY[name]
        found: object = getattr(import_module(f"ramet.frontend.backends.{module}"), attribute)
        return found
    if name in ELSEWHERE:
        raise AttributeError(
            f"ramet.{name} is not built into this version: run programs on ramet.Engine(model), in this machine, on "
            "ramet.Endpoint(url), ramet.OpenAI(model, base_url), or on ramet.Mock(answers)"
        )
    raise AttributeError(f"module 'ramet' has no attribute {name!r}")
