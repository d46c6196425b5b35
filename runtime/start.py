"""From the arguments of `Engine(...)` to a running engine and its client.

In: a model's name and options. Out: an `EngineClient`; text (tokenizer, template) is loaded here, the weights by the engine.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ramet.frontend.errors import EngineError
from ramet.runtime.client import EngineClient
from ramet.runtime.config import Config, Limits
from ramet.runtime.models import hub

Progress = Callable[[str, int, int], None]


def configure(model: str, options: Mapping[str, object]) -> Config:
    """A `Config` from keyword options, those of `Limits` included; EngineError names an unknown or wrong one."""
    outer = {f for f in Config.__struct_fields__ if f not in ("limits", "model")}
    inner = set(Limits.__struct_fields__)
    for name in options:
        if name not in outer | inner:
            near = difflib.get_close_matches(name, outer | inner, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(outer | inner))}"
            raise EngineError(f"{name}={options[name]!r}: no such engine option; {hint}")
    limits = {name: value for name, value in options.items() if name in inner}
    fields: dict[str, Any] = {name: value for name, value in options.items() if name in outer}
    try:
        return msgspec.convert({**fields, "model": model, "limits": limits}, Config)
    except msgspec.ValidationError as error:
        raise EngineError(str(error)) from None


def start(
    model: str, options: Mapping[str, object], *, in_process: bool = False, progress: Progress | None = None
) -> EngineClient:
    """Resolve the model (fetching it if need be), load its text side, start its engine."""
    from ramet.runtime.vocabulary import load_template, load_tokenizer

    config = configure(model, options)
    source = hub.resolve(model, progress=progress)
    tokenizer = load_tokenizer(source)
    return EngineClient(config, tokenizer, load_template(source, tokenizer), in_process=in_process)
