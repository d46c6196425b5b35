"""Make .venv. In: pyproject.toml, constraints.txt, this interpreter. Out: .venv with ramet installed editable.

Idempotent: a stamp inside .venv holds a digest of all inputs, so that a second call returns at once. Runs on the
standard library of Python 3.7 and newer, so that an old interpreter gets a sentence and not a syntax error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".ramet-stamp"
LOCK = ROOT / "build" / "setup.lock"
PACKAGES = ("frontend", "kernels", "ramet", "runtime")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """Set up and return an exit status."""
    if sys.version_info < OLDEST:
        return _with_newer_python()
    wanted = _digest()
    if _stamped(wanted):
        return 0
    LOCK.parent.mkdir(exist_ok=True)
    with open(LOCK, "w", encoding="ascii") as lock:
        _wait_for(lock)
        if not _stamped(wanted):
            _build(wanted)
    return 0


def _with_newer_python() -> int:
    for minor in (12, 11, 13):
        found = shutil.which("python3.{}".format(minor))  # noqa: UP032 (old interpreters come here)
        if found and _runs([found, "-c", "import ensurepip, venv"]):
            return subprocess.call([found, *sys.argv])
    mine = ".".join(str(part) for part in sys.version_info[:3])
    sys.stderr.write(
        "error: ramet needs Python 3.11 or newer, with venv; {} is {}. "  # noqa: UP032
        "Install one (Debian, Ubuntu: python3-venv too), or name it: make PYTHON=python3.12 demo\n".format(
            sys.executable, mine
        )
    )
    return 1


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _digest() -> str:
    """Of everything that .venv is made from; the folder too, because an editable install names it."""
    digest = hashlib.sha256()
    kernels = ROOT / "kernels" / "cpu"
    built = (ROOT / "setup.py", kernels / "sources.py", *sorted((kernels / "native").iterdir()))
    for part in (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__), *built):
        digest.update(part.read_bytes())
    digest.update(f"{ROOT} {sys.version_info[:2]}".encode())
    return digest.hexdigest()


def _stamped(wanted: str) -> bool:
    return STAMP.is_file() and STAMP.read_text(encoding="ascii") == wanted


def _wait_for(lock: object) -> None:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this platform: two set-ups at once are the user's affair
        return
    fcntl.flock(lock, fcntl.LOCK_EX)  # type: ignore[arg-type]


def _build(wanted: str) -> None:
    python = str(VENV / "bin" / "python")
    same = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if not (os.path.exists(python) and _runs([python, "-P", "-c", same])):
        _phase("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    install = [python, "-P", "-m", "pip", "install", "-qq", "-c", "constraints.txt", *_torch_source(python)]
    _phase("packages (minutes the first time)", [*install, "-e", ".[dev]"])
    # pip compiles what it copies, and an editable install copies nothing: each process would parse all sources anew
    _phase("bytecode", [python, "-P", "-m", "compileall", "-q", *PACKAGES])
    STAMP.write_text(wanted, encoding="ascii")


def _torch_source(python: str) -> list[str]:
    """Where Linux gets torch: PyPI's wheel there is the CUDA one, gigabytes of no use to a machine without a GPU.
    A pip that was configured with sources of its own is left as it is."""
    if not sys.platform.startswith("linux") or shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    if any(key in listed for key in ("index-url", "find-links", "no-index")):
        return []
    return ["--extra-index-url", CPU_WHEELS]


def _phase(name: str, command: list[str]) -> None:
    sys.stdout.write(f"set-up: {name} ... ")
    sys.stdout.flush()
    start = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    status = subprocess.call(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    if status:
        hint = "; is pip's venv support installed (Debian, Ubuntu: python3-venv)?" if "venv" in command else ""
        raise SystemExit(f"\nerror: set-up failed at {name!r}{hint} (status {status}): {' '.join(command)}")
    sys.stdout.write(f"{time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
