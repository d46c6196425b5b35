"""`ramet serve` and `ramet config`: the command line of the server, made from the fields of `Settings` and `Config`.

In: arguments, `RAMET_*`, a TOML file. Out: a running server whose last words on standard output are the ready block; or
every setting with its value and source. Errors are raised as `RametError`, wrong usage as `SystemExit` 2.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from ramet.runtime.server.settings import (
    ENGINE_FIELDS,
    LIMIT_FIELDS,
    SECRET,
    Loaded,
    field_help,
    field_type,
    is_tuple,
    known_fields,
    load,
    value_of,
)

ALIASES = {  # what other servers call it; accepted, and not shown
    "model": ("--model-path",),
    "context": ("--context-length", "--max-model-len"),
    "kv_share": ("--mem-fraction-static", "--gpu-memory-utilization"),
    "admin_key": ("--admin-api-key",),
    "max_running": ("--max-num-seqs",),
}
GROUPS = {  # of `--help`: every field stands in one
    "engine": ENGINE_FIELDS,
    "steps of the engine": LIMIT_FIELDS,
    "address": ("host", "port", "served_model_name", "root_path", "ssl_certfile", "ssl_keyfile"),
    "who may call": ("api_key", "admin_key", "insecure", "allowed_host", "cors_origin", "metrics_public"),
    "limits": (
        *("max_queue", "max_running_requests", "max_connections", "max_body", "max_program_ops", "max_program_tokens"),
        *("header_timeout", "body_timeout", "request_timeout", "drain_timeout"),
    ),
    "requests": ("seed", "strict_requests", "idempotency_seconds"),
    "what can be watched": ("dashboard", "metrics_compat", "log_level", "log_format"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and where to read more."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser(prog: str) -> argparse.ArgumentParser:
    """A flag per field: `--x` and `--no-x` for a boolean, repeatable for a tuple; what is not given is not in the
    result."""
    made = _Parser(
        prog=prog,
        usage="%(prog)s [MODEL] [flags]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Every flag can also stand in a TOML file (--config) or in the environment (RAMET_*).",
    )
    made.add_argument("positional", metavar="MODEL", nargs="?", help=field_help("model"))
    made.add_argument("--config", metavar="FILE", help="TOML file with settings, named like the flags")
    for title, names in GROUPS.items():
        group = made.add_argument_group(title)
        for name in names:
            _add(group, name)
            if name in ALIASES:
                made.add_argument(*ALIASES[name], dest=name, help=argparse.SUPPRESS)
    return made


def _add(group: argparse._ArgumentGroup, name: str) -> None:
    flag, kind = f"--{name.replace('_', '-')}", field_type(name)
    # the model stands in front, as MODEL; its flag is for muscle memory, like the aliases
    text = argparse.SUPPRESS if name == "model" else field_help(name).replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
    elif is_tuple(name):
        group.add_argument(flag, dest=name, action="append", metavar="TEXT", help=text)
    else:
        choices = [each for each in get_args(kind) if isinstance(each, str)]
        shown = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X"}.get(kind, "TEXT")
        group.add_argument(flag, dest=name, metavar=shown, help=text)


def settings_of(prog: str, args: Sequence[str], environ: Mapping[str, str], *, extra: Sequence[str] = ()) -> Loaded:
    """Arguments, environment and file put together; `extra` are flags that the caller has dealt with."""
    made = parser(prog)
    for flag in extra:
        made.add_argument(flag, action="store_true", help=_EXTRA[flag])
    given, unknown = made.parse_known_args(args)
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
        made.error(f"{unknown[0]} is not known" + (f"; did you mean {near[0]}?" if near else ""))
    values = vars(given)
    for flag in extra:
        values.pop(flag.lstrip("-"), None)
    if "positional" in values:
        if "model" in values:
            made.error(f"the model is given twice: {values['positional']} and {values['model']}")
        values["model"] = values.pop("positional")
    file = values.pop("config", None)
    return load(values, environ, None if file is None else Path(file))


_EXTRA = {"--explain": "each setting with its value and where that came from"}


def config(args: Sequence[str]) -> None:
    """`ramet config`: the settings that these flags, this environment and file make, as TOML; with --explain, each with
    its source. Keys are counted, not shown."""
    loaded = settings_of("ramet config", args, os.environ, extra=("--explain",))
    if "--explain" in args:
        rows = loaded.rows()
        wide, wider = max(len(name) for name, _, _ in rows), max(len(value) for _, value, _ in rows)
        lines = [f"{name:{wide}}  {value:{wider}}  {source}" for name, value, source in rows]
    else:
        lines = [f"{name} = {_toml(value_of(loaded, name))}" for name in known_fields() if name not in SECRET]
    sys.stdout.write("\n".join(lines) + "\n")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    return repr(value)


def serve(args: Sequence[str]) -> None:
    """`ramet serve`: until SIGTERM or Ctrl-C. Raises `RametError`: a setting is wrong, the port is in use, the model
    cannot be had or does not fit."""
    loaded = settings_of("ramet serve", args, os.environ)
    from ramet.runtime.server.launch import listen, run  # after the arguments: it takes a second
    from ramet.runtime.server.logs import configure

    settings = loaded.settings
    configure(settings.log_level, settings.log_format)
    listener = listen(settings.host, settings.port)
    with listener:
        starter = _Starter(loaded, listener.getsockname()[1])
        run(listener, settings, starter.names, starter.start, starter.announce)


class _Starter:
    """Starts the engine, and says so."""

    def __init__(self, loaded: Loaded, port: int) -> None:
        self._loaded = loaded
        self._port = port

    def start(self) -> Any:
        """An `EngineClient`, when it is ready."""
        from ramet.runtime.models import hub
        from ramet.runtime.server.banner import progress
        from ramet.runtime.start import start

        config = self._loaded.config
        options = {name: getattr(config, name) for name in ENGINE_FIELDS if name != "model"}
        options |= {name: getattr(config.limits, name) for name in LIMIT_FIELDS}
        records = self._loaded.settings.log_format == "json"  # whoever collects lines of JSON there gets no others
        with progress(sys.stderr, logging.getLogger("ramet.server").info if records else None) as report:
            source = hub.resolve(config.model, progress=report)
            report(f"loading {source.name}", 0, 0)
            return start(config.model, options)

    def names(self, client: Any) -> tuple[str, ...]:
        """The names under which the model is served: those that were asked for, else its own."""
        return self._loaded.settings.served_model_name or (client.ready.model,)

    def announce(self, client: Any) -> None:
        """Print the ready block."""
        from ramet.runtime.models import hub
        from ramet.runtime.server.banner import ready_block, url_of

        settings, config = self._loaded.settings, self._loaded.config
        spec = hub.load_spec(hub.resolve(config.model))
        name = self.names(client)[0]
        lines = ready_block(url_of(settings, self._port), settings, config, client.ready, spec, name)
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
