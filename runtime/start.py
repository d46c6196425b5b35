"""From the arguments of `Engine(...)` to a running engine and its client.

In: a model's name and options. Out: an `EngineClient`; text (tokenizer, template) is loaded here, the weights by the
engine.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ramet.frontend.errors import EngineError, ModelError
from ramet.runtime.client import EngineClient
from ramet.runtime.config import Config, Limits
from ramet.runtime.models import hub
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer

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
        reason, _, place = str(error).partition(" - at `$")
        name = place.rstrip("`").rpartition(".")[2]
        raise EngineError(f"{name}={options[name]!r}: {reason}" if name in options else reason) from None


def load_tokenizer(source: hub.ModelSource) -> Tokenizer:
    """The model's own tokenizer. Raises `ModelError`."""
    metadata = hub.load_metadata(source)
    if metadata.gguf is not None:
        return Tokenizer.from_gguf(metadata.gguf)
    if metadata.tokenizer_file is None:
        raise ModelError(f"{source.name}: has no tokenizer")
    return Tokenizer.from_file(metadata.tokenizer_file, metadata.tokenizer_config, metadata.generation_config)


def start(
    model: str, options: Mapping[str, object], *, in_process: bool = False, progress: Progress | None = None
) -> EngineClient:
    """Resolve the model (fetching it if need be), load its text side, start its engine."""
    config = configure(model, options)
    source = hub.resolve(model, progress=progress)
    tokenizer = load_tokenizer(source)
    context = config.context or hub.load_spec(source).context
    template = ChatTemplate.of(hub.load_metadata(source).chat_template, tokenizer, context)
    return EngineClient(config, tokenizer, template, in_process=in_process)
