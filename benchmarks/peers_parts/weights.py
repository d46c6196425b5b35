"""The same weights for every peer. In: a model of ours, a cache folder. Out: a directory as Hugging Face's libraries
save one: config.json, model.safetensors in bfloat16, tokenizer.json, generation_config.json.

What our GGUF file has in blocks of 4 bits is dequantised and rounded to bfloat16: the weights that our own bfloat16
runner has, too. Each peer makes its own formats from this directory, or from the GGUF file (`prepare` of its adapter).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ramet.frontend.errors import ModelError
from ramet.runtime import vocabulary
from ramet.runtime.models import hub
from ramet.runtime.models.names import file_names
from ramet.runtime.models.spec import Spec


def key(source: hub.ModelSource) -> str:
    """A name for what is made from these weights: another one when the file changes."""
    found = source.path.stat()
    return f"{source.name}-{found.st_size:x}-{found.st_mtime_ns:x}"


def directory(source: hub.ModelSource, spec: Spec, folder: Path) -> Path:
    """`folder`/hf, made by one rename where it is missing. Raises `ModelError` for what the peers cannot all read."""
    if source.kind != "gguf":
        raise ModelError(
            f"--model {source.name}: the peers' formats are made from a .gguf file; give one, or --peers ramet"
        )
    if spec.family != "llama" or spec.rope.kind != "none":
        raise ModelError(f"--model {source.name}: the peers' formats are made for plain models of family llama only")
    place = folder / "hf"
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".hf-", dir=folder))
    try:
        _write(source, spec, made)
        os.rename(made, place)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def config(spec: Spec) -> dict[str, Any]:
    """config.json of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.eps,
        "max_position_embeddings": spec.context,
        "rope_theta": spec.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope.theta},
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": spec.bos,
        "eos_token_id": spec.eos[0],
    }


def _write(source: hub.ModelSource, spec: Spec, place: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from ramet.runtime.models.load import load_weights

    tensors = load_weights(source, spec, torch.bfloat16)
    names = file_names(spec, 0)
    save_file({names[name]: tensor for name, tensor in tensors.items()}, place / "model.safetensors", {"format": "pt"})
    special = _tokenizer(source, place)
    ends = {"bos_token_id": spec.bos, "eos_token_id": list(spec.eos)}
    files = {"config.json": config(spec), "generation_config.json": ends, "tokenizer_config.json": special}
    for name, content in files.items():
        (place / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tokenizer(source: hub.ModelSource, place: Path) -> dict[str, Any]:
    """Writes tokenizer.json; tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    metadata = hub.load_metadata(source).gguf or {}
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(f"--model {source.name}: the peers' formats are made for byte-level tokenizers only")
    known = vocabulary.from_gguf(metadata)
    names, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    assert isinstance(names, list) and isinstance(merges, list), "vocabulary.from_gguf has read them"
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in merges)]
    core = Tokenizer(BPE({name: number for number, name in enumerate(names)}, pairs))
    core.pre_tokenizer = known.core().pre_tokenizer
    core.decoder = decoders.ByteLevel()
    listed = sorted(known.control, key=lambda name: known.control[name])
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in listed])
    wrong = [name for name in listed if core.token_to_id(name) != known.control[name]]
    if wrong:
        raise ModelError(
            f"{source.path}: the ids of control tokens {', '.join(wrong[:4])} cannot be written as they are"
        )
    core.save(str(place / "tokenizer.json"))
    named = {value: name for name, value in known.control.items()}
    marks = {"bos_token": known.bos, "eos_token": known.eos[0] if known.eos else None}
    found = {mark: named[value] for mark, value in marks.items() if value in named}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **found}
