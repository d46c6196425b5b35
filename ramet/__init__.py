"""Many branches, one root: a DSL for multi-call LLM programs and the engine that runs them.

The public names, each imported when it is first used: an engine's process and the command line need few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ramet.frontend.backends.base import Backend
    from ramet.frontend.backends.endpoint import Endpoint
    from ramet.frontend.backends.endpoint import Endpoint as RuntimeEndpoint
    from ramet.frontend.backends.engine import Engine
    from ramet.frontend.backends.mock import Mock
    from ramet.frontend.backends.openai import OpenAI
    from ramet.frontend.batch import Batch
    from ramet.frontend.branches import Branches
    from ramet.frontend.callers import idempotency_key
    from ramet.frontend.combinators import (
        Best,
        Settled,
        abest_of,
        acascade,
        arefine_until,
        avote,
        best_of,
        cascade,
        refine_until,
        vote,
    )
    from ramet.frontend.diagnostics import Diagnostic
    from ramet.frontend.errors import (
        Aborted,
        BudgetExceeded,
        ConstraintError,
        ContextOverflow,
        EngineError,
        GenerationError,
        JournalError,
        JournalHeld,
        JournalMismatch,
        ModelError,
        OverloadedError,
        ParseError,
        PlanError,
        ProgramError,
        ProgramTimeout,
        RametError,
        StateError,
        ToolError,
        TransportError,
        TruncatedError,
        UncertainToolCall,
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
    from ramet.frontend.journal_run import idempotent
    from ramet.frontend.plan import Plan
    from ramet.frontend.program import Program, function
    from ramet.frontend.run import Run
    from ramet.frontend.search import BestPath, abeam, atree_search, beam, tree_search
    from ramet.frontend.state import State
    from ramet.frontend.tools import Call, ToolReply
    from ramet.frontend.values import Value, agather, gather

__all__ = [
    "Aborted",
    "Backend",
    "Batch",
    "Best",
    "BestPath",
    "Branches",
    "BudgetExceeded",
    "Call",
    "ConstraintError",
    "ContextOverflow",
    "Diagnostic",
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
    "JournalError",
    "JournalHeld",
    "JournalMismatch",
    "Mock",
    "ModelError",
    "OpenAI",
    "OverloadedError",
    "ParseError",
    "Plan",
    "PlanError",
    "Program",
    "ProgramError",
    "ProgramTimeout",
    "RametError",
    "Run",
    "RuntimeEndpoint",
    "Settled",
    "Started",
    "State",
    "StateError",
    "Token",
    "ToolError",
    "ToolReply",
    "TransportError",
    "TruncatedError",
    "UncertainToolCall",
    "UnknownVariable",
    "Usage",
    "Value",
    "abeam",
    "abest_of",
    "acascade",
    "agather",
    "arefine_until",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "atree_search",
    "avote",
    "beam",
    "best_of",
    "cascade",
    "flush_cache",
    "function",
    "gather",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "idempotency_key",
    "idempotent",
    "image",
    "refine_until",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "tree_search",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "using",
    "vote",
]

_HOMES = {  # of the public names, below ramet.frontend: imported when they are asked for
    "backends.base": "Backend",
    "backends.endpoint": "Endpoint",
    "backends.engine": "Engine",
    "backends.mock": "Mock",
    "backends.openai": "OpenAI",
    "batch": "Batch",
    "branches": "Branches",
    "callers": "idempotency_key",
    "combinators": ("Best Settled abest_of acascade arefine_until avote best_of cascade refine_until vote"),
    "diagnostics": "Diagnostic",
    "errors": (
        "Aborted BudgetExceeded ConstraintError ContextOverflow EngineError GenerationError JournalError JournalHeld "
        "JournalMismatch ModelError OverloadedError ParseError PlanError ProgramError ProgramTimeout RametError "
        "StateError ToolError TransportError TruncatedError UncertainToolCall UnknownVariable"
    ),
    "expressions": (
        "assistant assistant_begin assistant_end gen gen_int gen_string greedy_token_selection image select "
        "separate_reasoning system system_begin system_end token_length_normalized "
        "unconditional_likelihood_normalized user user_begin user_end"
    ),
    "host": "flush_cache get_server_info set_default_backend using",
    "ir": "Ended Event Failed Finished Forked Joined Started Token Usage",
    "journal_run": "idempotent",
    "plan": "Plan",
    "program": "Program function",
    "run": "Run",
    "search": "BestPath abeam atree_search beam tree_search",
    "state": "State",
    "tools": "Call ToolReply",
    "values": "Value agather gather",
}
_HOME = {name: (module, name) for module, names in _HOMES.items() for name in names.split()}
_HOME["RuntimeEndpoint"] = ("backends.endpoint", "Endpoint")  # SGLang's name
ELSEWHERE = ("Runtime", "Anthropic", "VertexAI", "LiteLLM")


def __getattr__(name: str) -> object:
    if name in _HOME:
        module, attribute = _HOME[name]
        found: object = getattr(import_module(f"ramet.frontend.{module}"), attribute)
        globals()[name] = found
        return found
    if name in ELSEWHERE:
        raise AttributeError(
            f"ramet.{name} is not built into this version: run programs on ramet.Engine(model), in this machine, on "
            "ramet.Endpoint(url), ramet.OpenAI(model, base_url), or on ramet.Mock(answers)"
        )
    raise AttributeError(f"module 'ramet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
