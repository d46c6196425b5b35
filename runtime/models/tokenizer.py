"""A model's own tokenizer.

In: a `ModelSource`, or its `Metadata`. Out: a `Tokenizer`.
"""

from __future__ import annotations

from ramet.frontend.errors import ModelError
from ramet.runtime.models import hub
from ramet.runtime.text import Tokenizer


def load_tokenizer(source: hub.ModelSource) -> Tokenizer:
    """The tokenizer of a model. Raises `ModelError`."""
    return tokenizer_of(source, hub.load_metadata(source))


def tokenizer_of(source: hub.ModelSource, metadata: hub.Metadata, *, encodes: bool = True) -> Tokenizer:
    """The same from metadata that was read already; `encodes` as for `Tokenizer.from_gguf`. Raises `ModelError`."""
    if metadata.gguf is not None:
        return Tokenizer.from_gguf(metadata.gguf, encodes=encodes)
    if metadata.tokenizer_file is None:
        raise ModelError(f"{source.name}: has no tokenizer")
    return Tokenizer.from_file(metadata.tokenizer_file, metadata.tokenizer_config, metadata.generation_config)
