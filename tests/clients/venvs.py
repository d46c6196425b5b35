"""Environments of foreign clients. In: a client's name. Out: the interpreter of a virtual environment that has it.

Each client lives in an environment of its own under `build/clients/`, so that its dependencies disturb neither ours nor
each other's. An environment is made once: a stamp in it holds a digest of what it was made from.

    python -P tests/clients/venvs.py [NAME ...]    makes them (all of them) ahead of time
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / "build" / "clients"
CONSTRAINTS = ROOT / "constraints.txt"
SECONDS = 280.0  # that one call of pip may take


@dataclass(frozen=True, slots=True)
class Client:
    """What pip installs: `packages`, `alone` without their dependencies. `ours`: in the versions of constraints.txt,
    which a client that needs older ones cannot have."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    ours: bool = True


# SGLang's wheel asks for its whole engine; its client needs the second line alone.
_SGLANG = Client(
    ("aiohttp", "ipython", "numpy", "psutil", "pybase64", "pydantic", "requests", "tqdm"),
    alone=("sglang==0.4.10.post2",),
)
CLIENTS: dict[str, Client] = {
    "openai": Client(("openai",)),
    "anthropic": Client(("anthropic",)),
    "ollama": Client(("ollama",)),
    "httpx": Client(("httpx",)),
    "sglang": _SGLANG,
    "langchain": Client(("langchain-openai==1.7.3",)),
    "litellm": Client(("litellm==1.106.2", "mcp"), ours=False),  # it asks for mcp where there are tools
    "smolagents": Client(("smolagents[openai]==1.26.0",)),
    "schemathesis": Client(("schemathesis==4.32.5",)),
}
# Beyond what must pass: a client that cannot be installed is skipped, with pip's reason.
EXTRA: dict[str, Client] = {
    "instructor": Client(("instructor==1.17.0",), ours=False),
    "pydantic_ai": Client(("pydantic-ai-slim[openai]==2.68.0",), ours=False),
    "dspy": Client(("dspy==3.4.1", "litellm==1.106.2"), ours=False),
    "llama_index": Client(("llama-index-llms-openai-like==0.8.1",), ours=False),
    "guidance": Client(("guidance==0.3.1", "openai<3"), ours=False),
}


class NotInstallable(Exception):
    """What pip said."""


def interpreter(name: str) -> Path:
    """The interpreter of client `name`'s environment, which is made unless it is there. Raises `NotInstallable`."""
    client = (CLIENTS | EXTRA)[name]
    home = HOME / name
    python = home / "bin" / "python"
    stamp = home / "stamp"
    wanted = _digest(client)
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / f"{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text(encoding="ascii") != wanted:
            shutil.rmtree(home, ignore_errors=True)
            _run([sys.executable, "-P", "-m", "venv", str(home)])
            limits = ["-c", str(CONSTRAINTS)] if client.ours else []
            pip = [str(python), "-P", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--prefer-binary"]
            _run([*pip, *limits, *client.packages])
            if client.alone:
                _run([*pip, "--no-deps", *client.alone])
            stamp.write_text(wanted, encoding="ascii")
    return python


def _digest(client: Client) -> str:
    made_from = f"{client} {sys.version_info[:2]} {ROOT}".encode() + (CONSTRAINTS.read_bytes() if client.ours else b"")
    return hashlib.sha256(made_from).hexdigest()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotInstallable(f"no end of `{' '.join(command[-3:])}` within {SECONDS:g} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NotInstallable(f"{command[-1]}: {said[-1] if said else 'pip failed'}")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or [*CLIENTS, *EXTRA]:
        try:
            sys.stdout.write(f"{chosen}: {interpreter(chosen)}\n")
        except NotInstallable as error:
            sys.stdout.write(f"{chosen}: not installable: {error}\n")
