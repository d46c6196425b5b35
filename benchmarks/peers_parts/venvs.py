"""A virtual environment for each peer. In: its requirements, a folder. Out: the path of its Python.

Made once: a file inside holds a digest of what it was made from. A peer that does not install is no error of the run:
`NotInstalled` has pip's own last words.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peers_parts.catalog import Peer

CONSTRAINTS = Path(__file__).resolve().parent.parent.parent / "constraints.txt"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SECONDS = 3600  # that an installation may take; compiling llama.cpp takes ten minutes on two cores
_STAMP = ".ramet-stamp"


class NotInstalled(Exception):
    """Why a peer is not here."""


def python_of(peer: Peer, folder: Path, say: Callable[[str], None]) -> Path:
    """The interpreter that runs a peer's adapter; makes the environment where it is missing or of other requirements.
    Raises `NotInstalled`."""
    if not peer.requirements:
        return Path(sys.executable)
    place = folder / peer.name
    python, stamp, wanted = place / "bin" / "python", place / _STAMP, digest(peer)
    if python.is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return python
    say(f"installing {peer.name} (minutes): {', '.join(peer.requirements)}")
    if not python.is_file():
        _run(peer, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)])
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(python)]  # ours serves all of them
    constraints = ["-c", str(CONSTRAINTS)] if peer.constrained else []
    _run(peer, [*pip, "install", "-q", *constraints, *torch_source(), *peer.requirements])
    if peer.without:
        _run(peer, [*pip, "uninstall", "-q", "-y", *peer.without])
    stamp.write_text(wanted, encoding="ascii")
    return python


def digest(peer: Peer) -> str:
    """Of what an environment is made from."""
    limits = CONSTRAINTS.read_text(encoding="utf-8") if peer.constrained else ""
    parts = (sys.version_info[:2], peer.requirements, tuple(peer.without), sorted(peer.building.items()), limits)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def torch_source() -> list[str]:
    """Where Linux gets a torch without CUDA, as the set-up of the repository does; a pip that has sources of its own is
    left as it is."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    own = any(key in listed for key in ("index-url", "find-links", "no-index"))
    return [] if own else ["--extra-index-url", CPU_WHEELS]


def _run(peer: Peer, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **peer.building},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{peer.name}: {error}") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        raise NotInstalled(f"{peer.name}: {errors[-1] if errors else 'no reason given'}")
