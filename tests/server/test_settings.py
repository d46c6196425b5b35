"""Where settings come from, which one wins, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ramet.frontend.errors import EngineError
from ramet.runtime.config import Config
from ramet.runtime.server import settings as module
from ramet.runtime.server.command import ALIASES, GROUPS, parser, settings_of
from ramet.runtime.server.settings import SERVER_FIELDS, Settings, field_help, is_tuple, known_fields, load, value_of

SAMPLES: dict[str, Any] = {  # for every field: a value that is not its default
    "model": "random:tiny",
    "dtype": "float32",
    "device": "cpu",
    "kernels": "torch",
    "weights": "dense",
    "deterministic": True,
    "graphs": False,
    "threads": 2,
    "context": 77,
    "kv_tokens": 1000,
    "kv_share": 0.5,
    "max_running": 3,
    "batch_tokens": 64,
    "chunk_tokens": 32,
    "policy": "age",
    "host": "localhost",
    "port": 1234,
    "api_key": ("one", "two"),
    "admin_key": "boss",
    "insecure": True,
    "allowed_host": ("box",),
    "cors_origin": ("http://page",),
    "served_model_name": ("a", "b"),
    "root_path": "/llm",
    "ssl_certfile": "c.pem",
    "ssl_keyfile": "k.pem",
    "max_queue": 5,
    "max_running_requests": 6,
    "max_connections": 7,
    "max_body": 4096,
    "header_timeout": 1.5,
    "body_timeout": 2.5,
    "request_timeout": 3.5,
    "drain_timeout": 4.5,
    "idempotency_seconds": 5.5,
    "seed": 4,
    "strict_requests": True,
    "metrics_public": True,
    "dashboard": True,
    "metrics_compat": "none",
    "max_program_ops": 8,
    "max_program_tokens": 9,
    "log_level": "debug",
    "log_format": "json",
}


def flags_of(values: dict[str, Any]) -> list[str]:
    found = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            found += [part for each in (value if isinstance(value, tuple) else (value,)) for part in (flag, str(each))]
    return found


def toml_of(values: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f"[{', '.join(text(v) for v in value)}]" if isinstance(value, tuple) else repr(value)

    return "\n".join(f"{name} = {text(value)}" for name, value in values.items())


def environment_of(values: dict[str, Any]) -> dict[str, str]:
    joined = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in values.items()}
    return {f"RAMET_{name.upper()}": text for name, text in joined.items()}


def test_there_is_a_sample_and_a_text_for_every_field():
    assert set(SAMPLES) == set(known_fields())
    assert all(field_help(name) for name in known_fields())
    defaults = load({}, {})
    assert all(value_of(defaults, name) != value for name, value in SAMPLES.items())


def test_help_has_a_place_for_every_field():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(known_fields())


def test_there_are_few_flags():
    shown = [action for action in parser("x")._actions if action.help != "==SUPPRESS==" and action.option_strings]
    assert len(shown) - 1 <= 44  # without --help


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_every_field_from_every_source(source: str, tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text(toml_of(SAMPLES) if source == "file" else "")
    flags = [*flags_of(SAMPLES if source == "flags" else {}), "--config", str(file)]
    loaded = settings_of("ramet serve", flags, environment_of(SAMPLES if source == "environment" else {}))
    assert {name: value_of(loaded, name) for name in SAMPLES} == SAMPLES
    sources = {name: found for name, _, found in loaded.rows()}
    expected = {"flags": "--{}", "environment": "RAMET_{}", "file": str(file)}[source]
    for name, found in sources.items():
        assert found == expected.format(name.replace("_", "-") if source == "flags" else name.upper())


def test_precedence(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nmax-queue = 1\ncontext = 1\nmax_body = 2048\n")
    environ = {"RAMET_PORT": "2", "RAMET_MAX_QUEUE": "2", "RAMET_CONTEXT": "2"}
    loaded = settings_of("x", ["--port", "3", "--max-queue=3", "--config", str(file)], environ)
    assert (loaded.settings.port, loaded.settings.max_queue, loaded.config.context) == (3, 3, 2)
    assert (loaded.settings.max_body, loaded.settings.host) == (2048, "127.0.0.1")
    wanted = {"port": "--port", "context": "RAMET_CONTEXT", "max_body": str(file)}
    assert {name: loaded.sources[name] for name in wanted} == wanted
    assert "host" not in loaded.sources


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in ALIASES.items() for flag in flags])
def test_aliases_are_accepted(name: str, flag: str):
    value = SAMPLES[name]
    assert value_of(settings_of("x", [flag, str(value)], {}), name) == value


def test_the_model_is_positional_or_a_flag_but_not_both(capsys: pytest.CaptureFixture[str]):
    assert settings_of("x", ["random:tiny"], {}).config.model == "random:tiny"
    with pytest.raises(SystemExit) as ended:
        settings_of("x", ["a", "--model", "b"], {})
    assert ended.value.code == 2 and "twice" in capsys.readouterr().err


def test_unknown_names_are_refused_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "serve.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(EngineError, match=r"'prot'.*did you mean port"):
        load({}, {}, file)
    with pytest.raises(EngineError, match=r"RAMET_API_KEYS.*did you mean api_key"):
        load({}, {"RAMET_API_KEYS": "x"})
    with pytest.raises(SystemExit) as ended:
        settings_of("x", ["--prot", "1"], {})
    assert ended.value.code == 2 and "did you mean --port" in capsys.readouterr().err
    assert load({}, {"RAMET_CACHE": "/x", "RAMET_SOMETHING_ELSE": "1", "PORT": "1"}).sources == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "many"),
        ("port", "70000"),
        ("max_body", "1"),
        ("insecure", "perhaps"),
        ("log_format", "xml"),
        ("header_timeout", "0"),
        ("dtype", "float8"),
        ("kv_share", "2"),
        ("batch_tokens", "-1"),
        ("host", "0.0.0.0"),
        ("api_key", "two words"),
        ("api_key", "schlüssel"),
        ("ssl_certfile", "c.pem"),
    ],
)
def test_wrong_values_are_named(name: str, value: str):
    with pytest.raises(EngineError) as refused:
        load({}, {f"RAMET_{name.upper()}": value})
    assert name in str(refused.value).lower()
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path):
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1")
    for file in (broken, tmp_path / "none.toml"):
        with pytest.raises(EngineError, match=file.name):
            load({}, {}, file)


def test_a_wrong_type_in_a_file_names_the_file(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text('api_key = "not a list"')
    with pytest.raises(EngineError, match=r"serve\.toml"):
        load({}, {}, file)


def test_beyond_loopback_there_is_a_key_or_a_decision():
    with pytest.raises(EngineError, match="without a key"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", api_key=("k",)).host == "0.0.0.0"
    assert Settings(host="0.0.0.0", insecure=True).insecure


def test_keys_are_not_shown():
    rows = load({"api_key": ["secret-one", "secret-two"], "admin_key": "secret-three"}, {}).rows()
    assert "secret" not in repr(rows)
    assert {name: value for name, value, _ in rows}["api_key"] == "(2 set)"


def test_fields_do_not_collide():
    assert not set(SERVER_FIELDS) & set(Config.__struct_fields__)
    assert [name for name in known_fields() if is_tuple(name)] == [
        "api_key",
        "allowed_host",
        "cors_origin",
        "served_model_name",
    ]
    assert set(module.SECRET) <= set(SERVER_FIELDS)
