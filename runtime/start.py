"""From the arguments of `Engine(...)` to a running engine and its client.

In: a model's name and options. Out: an `EngineClient`; text (tokenizer, template) is loaded here, while the engine's
process loads the weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ramet.frontend.errors import EngineError
from ramet.runtime.client import EngineClient
from ramet.runtime.config import Config, Limits
from ramet.runtime.launch import Early
from ramet.runtime.models import hub

if TYPE_CHECKING:
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
        given = {**options, "model": model}
        raise EngineError(f"{name}={given[name]!r}: {reason}" if name in given else reason) from None


def load_text(config: Config, source: hub.ModelSource) -> tuple[Tokenizer, ChatTemplate]:
    """The model's own tokenizer and chat template. Raises `ModelError`."""
    # the libraries of text are imported here, that is, while the engine's process starts; so is what programs will need
    from ramet.runtime import lower, translate  # noqa: F401
    from ramet.runtime.models.tokenizer import tokenizer_of
    from ramet.runtime.template import ChatTemplate

    spec, metadata = hub.load_both(source)
    tokenizer = tokenizer_of(source, metadata)
    return tokenizer, ChatTemplate.of(metadata.chat_template, tokenizer, config.context or spec.context)


def start(
    model: str,
    options: Mapping[str, object],
    *,
    in_process: bool = False,
    progress: Progress | None = None,
    early: Early | None = None,
) -> EngineClient:
    """Resolve the model (fetching it if need be), start its engine, or take the `early` one, and load its text side
    meanwhile."""
    config = configure(model, options)
    source = hub.resolve(model, progress=progress)
    return EngineClient(config, lambda: load_text(config, source), in_process=in_process, early=early)
