"""The command line, as a user runs it: exit statuses, one-line errors, no traceback, nothing heavy for --help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer

from ramet.__main__ import outcomes
from ramet.frontend.errors import ModelError


def ramet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "ramet", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", **environment},
    )


def test_version():
    done = ramet("--version")
    assert (done.returncode, done.stdout) == (0, f"ramet {version('ramet')}\n")


def test_help_names_the_commands():
    done = ramet("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "models", "doctor"))


def test_help_loads_nothing_heavy():
    heavy = "('torch', 'transformers', 'zmq', 'numpy')"
    code = f"import sys, ramet.__main__; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_command_it_explains_itself():
    done = ramet()
    assert "demo" in done.stdout + done.stderr


def test_wrong_usage_is_status_2():
    done = ramet("demo", "--points", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_models_lists_presets():
    done = ramet("models")
    assert done.returncode == 0, done.stderr
    assert "random:tiny" in done.stdout
    assert "smollm2-135m-instruct" in done.stdout


def test_an_expected_error_is_one_line(tmp_path):
    missing = str(tmp_path / "no such model")
    done = ramet("demo", "--model", missing)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "no such model" in done.stderr


def test_outcomes(capsys):
    with pytest.raises(typer.Exit) as ended, outcomes():
        raise ModelError("no such thing")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: no such thing\n"
    with pytest.raises(ZeroDivisionError), outcomes():
        raise ZeroDivisionError  # a bug of ours keeps its traceback


def test_ctrl_c_is_status_130():
    code = (
        "import os, signal, sys, typer\n"
        "from ramet.__main__ import app, outcomes\n"
        "@app.command()\n"
        "def hang():\n"
        "    with outcomes():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "sys.argv = ['ramet', 'hang']\n"
        "app()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted"


@pytest.mark.model
def test_run_takes_a_dtype():
    done = ramet("run", "--model", "random:tiny", "--dtype", "int8", "--max-tokens", "2", "--seed", "1", "Hello")
    assert done.returncode == 0, done.stderr
    assert "2 generated" in done.stderr and "ready in" not in done.stderr  # standard error is no terminal


def test_a_dtype_is_for_an_engine_here():
    done = ramet("run", "Hello", "--url", "127.0.0.1:1", "--dtype", "int4")
    assert done.returncode == 2, done.stderr
    assert "--dtype int4: is for an engine here" in done.stderr


def test_an_unknown_dtype_is_one_line():
    done = ramet("run", "--model", "random:tiny", "--dtype", "int3", "Hello")
    assert done.returncode == 1
    assert done.stderr.startswith("error: dtype='int3': choose") and done.stderr.count("\n") == 1
