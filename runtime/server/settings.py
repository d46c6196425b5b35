"""What a person may choose about the server, and where each choice came from.

In: flags, environment (`RAMET_*`), a TOML file. Out: `Settings` and the engine's `Config`, and for every field its
value and source. Flags beat the environment, which beats the file, which beats the defaults.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from ramet.frontend.errors import EngineError
from ramet.runtime.config import Config, Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Names = tuple[str, ...]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the server listens, whom it admits, and what it refuses. Every field's text is its `--help`."""

    host: Annotated[str, Meta(description="address to listen at; beyond loopback it needs a key")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one")] = 30000
    api_key: Annotated[Names, Meta(description="key that clients must show; repeatable, one per tenant")] = ()
    admin_key: Annotated[str, Meta(description="key for flush, abort-all and other control; default: any api key")] = ""
    insecure: Annotated[bool, Meta(description="allow a non-loopback address without a key")] = False
    allowed_host: Annotated[Names, Meta(description="Host header that is let in besides the address itself")] = ()
    cors_origin: Annotated[Names, Meta(description="web origin whose pages may call the server; repeatable")] = ()
    served_model_name: Annotated[Names, Meta(description="name under which the model is served; repeatable")] = ()
    root_path: Annotated[str, Meta(description="path prefix that a proxy in front strips")] = ""
    ssl_certfile: Annotated[str, Meta(description="certificate file: serve HTTPS")] = ""
    ssl_keyfile: Annotated[str, Meta(description="private key file of the certificate")] = ""
    max_queue: Annotated[int, Meta(ge=0, description="requests that wait; beyond it 429 with Retry-After")] = 1024
    max_running_requests: Annotated[int, Meta(ge=1, description="requests in the engine at once")] = 256
    max_connections: Annotated[int, Meta(ge=1, description="TCP connections at once; beyond it 503")] = 8192
    max_body: Annotated[int, Meta(ge=1024, description="bytes of a request body; beyond it 413")] = 4 << 20
    header_timeout: Annotated[float, Meta(gt=0, description="seconds for a request's headers to arrive")] = 10.0
    body_timeout: Annotated[float, Meta(gt=0, description="seconds for a request's body to arrive")] = 30.0
    request_timeout: Annotated[float, Meta(ge=0, description="seconds a request may take; 0 is no limit")] = 0.0
    drain_timeout: Annotated[float, Meta(ge=0, description="seconds that SIGTERM leaves running requests")] = 30.0
    idempotency_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="for which the answer to a request with an Idempotency-Key is kept (of all together 64 MB, of "
            "each 8 MB), and its run goes on without a client; 0 keeps none",
        ),
    ] = 600.0
    seed: Annotated[
        int, Meta(ge=-1, description="makes requests without a seed repeatable, in order of arrival; -1 does not")
    ] = -1
    strict_requests: Annotated[bool, Meta(description="refuse unknown request fields instead of warning")] = False
    metrics_public: Annotated[bool, Meta(description="/metrics without a key")] = False
    dashboard: Annotated[bool, Meta(description="a live page about cache, programs and pace at /dashboard")] = False
    metrics_compat: Annotated[
        Literal["sglang", "vllm", "none"], Meta(description="metric names of another server, beside ours")
    ] = "sglang"
    max_program_ops: Annotated[int, Meta(ge=1, description="operations of one program")] = 10_000
    max_program_tokens: Annotated[int, Meta(ge=1, description="sum of max_tokens of one program")] = 1_000_000
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="what is logged")] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="lines of text or of JSON")] = "text"

    def __post_init__(self) -> None:
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise EngineError("ssl_certfile, ssl_keyfile: give both or neither")
        for name, keys in (("api_key", self.api_key), ("admin_key", (self.admin_key,) if self.admin_key else ())):
            for key in keys:
                if not key or not key.isascii() or not key.isprintable() or " " in key:
                    raise EngineError(f"{name}: a key is printable ASCII without spaces")
        if self.host not in LOOPBACK and not self.api_key and not self.insecure:
            raise EngineError(
                f"host={self.host!r}: others could reach the server without a key; set api_key (RAMET_API_KEY), "
                "or insecure if that is meant"
            )


ENGINE_FIELDS = tuple(name for name in Config.__struct_fields__ if name != "limits")
LIMIT_FIELDS = ("batch_tokens", "chunk_tokens", "policy")
SERVER_FIELDS = Settings.__struct_fields__
SECRET = ("api_key", "admin_key")
NOT_SETTINGS = ("cache",)  # RAMET_CACHE: the directory that models are fetched to
ENGINE_HELP = {
    "model": '"default", a directory, a .gguf file, a hub id, or "random:<preset>"',
    "dtype": "what is computed with: auto, float32, bfloat16; on cuda float16; on a CPU int8, int4",
    "device": "auto (cuda where everything for it is there), cpu, cuda",
    "kernels": "on a CPU: native (ours), torch, or auto (native where they were built)",
    "weights": "auto, dense, or on cuda int8, int4, fp8",
    "deterministic": "the same bits whatever else runs; always so on a CPU",
    "graphs": "capture small steps as CUDA graphs",
    "threads": "threads of the engine; 0 is one per core",
    "context": "tokens of the longest sequence; 0 is the model's own",
    "kv_tokens": "KV slots; 0 is as many as kv_share holds",
    "kv_share": "share for KV of the memory left after the weights; 0 is a quarter on a CPU, 0.9 on cuda",
    "max_running": "sequences that decode at once",
    "batch_tokens": "new tokens of one step, over all sequences; 0 is 512 on a CPU, 4096 on cuda",
    "chunk_tokens": "of these, new tokens of one sequence; 0 is all of them",
    "policy": "who is let in: peak (whoever has begun can finish), age (oldest program first), lru-fcfs (calls as they "
    "come, nothing known of programs)",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, the engine's config, and each field's source: "default", the file's name, "RAMET_X" or "--x"."""

    settings: Settings
    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """(field, value, source) of every field; secrets are not shown."""
        found = []
        for name in (*ENGINE_FIELDS, *LIMIT_FIELDS, *SERVER_FIELDS):
            value = value_of(self, name)
            shown = (
                f"({len(value) if isinstance(value, tuple) else 1} set)" if name in SECRET and value else repr(value)
            )
            found.append((name, shown, self.sources.get(name, "default")))
        return found


def value_of(loaded: Loaded, name: str) -> Any:
    """The value of a field, wherever it lives."""
    if name in LIMIT_FIELDS:
        return getattr(loaded.config.limits, name)
    return getattr(loaded.config if name in ENGINE_FIELDS else loaded.settings, name)


def load(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None) -> Loaded:
    """Put the sources together. Raises `EngineError` that names the field, its source and what is wrong."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in ({} if file is None else _from_file(file)).items():
        values[name], sources[name] = value, str(file)
    for name, value in _from_environment(environ).items():
        values[name], sources[name] = value, f"RAMET_{name.upper()}"
    for name, value in flags.items():
        values[name], sources[name] = value, f"--{name.replace('_', '-')}"
    server = {n: v for n, v in values.items() if n in SERVER_FIELDS}
    engine: dict[str, Any] = {n: v for n, v in values.items() if n in ENGINE_FIELDS}
    engine["limits"] = {n: v for n, v in values.items() if n in LIMIT_FIELDS}
    return Loaded(_converted(server, Settings, sources), _converted(engine, Config, sources), sources)


def _converted(values: dict[str, Any], kind: type[Any], sources: Mapping[str, str]) -> Any:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        name = place.rstrip("`").strip(".").rpartition(".")[2].partition("[")[0]
        raise EngineError(f"{sources[name]}: {reason}" if name in sources else reason) from None


def known_fields() -> tuple[str, ...]:
    """Names of all fields, in the order in which they are shown."""
    return (*ENGINE_FIELDS, *LIMIT_FIELDS, *SERVER_FIELDS)


def _unknown(name: str, where: str) -> EngineError:
    near = difflib.get_close_matches(name, known_fields(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return EngineError(f"{where}: {name!r} is no setting{hint}")


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EngineError(f"config={str(file)!r}: cannot be read: {error}") from None
    for name in values:
        if name.replace("-", "_") not in known_fields():
            raise _unknown(name, str(file))
    return {name.replace("-", "_"): value for name, value in values.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """`RAMET_*` variables that name a field; several values are separated by commas. Raises `EngineError` for one that
    nearly does."""
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        name = variable.removeprefix("RAMET_").lower()
        if not variable.startswith("RAMET_") or name in NOT_SETTINGS:
            continue
        if name in known_fields():
            found[name] = tuple(part for part in text.split(",") if part) if is_tuple(name) else text
        elif difflib.get_close_matches(name, known_fields(), 1, cutoff=0.8):  # RAMET_API_KEYS would protect nothing
            raise _unknown(name, variable)
    return found


def is_tuple(name: str) -> bool:
    """Whether a field has several values."""
    kind = field_type(name)
    return get_origin(kind) is tuple


def _field(name: str) -> msgspec.structs.FieldInfo:
    struct: Any = Settings if name in SERVER_FIELDS else Limits if name in LIMIT_FIELDS else Config
    return next(field for field in msgspec.structs.fields(struct) if field.name == name)


def field_type(name: str) -> Any:
    """The plain type of a field, without its description."""
    kind = _field(name).type
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def field_help(name: str) -> str:
    """What a field is, and its default."""
    field = _field(name)
    if name in ENGINE_HELP:
        text = ENGINE_HELP[name]
    else:
        text = next(each.description for each in get_args(field.type) if isinstance(each, Meta)) or ""
    if isinstance(field.default, bool):
        return f"{text} [{'on' if field.default else 'off'}]"
    return text if field.default in ("", (), 0) else f"{text} [{field.default}]"
