"""Server processes: in: a model and flags. Out: a `ramet serve` that answers, its processes, what they use, its end.

Every process is found as a descendant of the one that was started here, and ended by its id. Figures of processes are
read from proc(5); where there is none, whoever asks gets `Unmeasured`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reliability_parts.board import Unmeasured, Violation

READY = 120.0  # seconds until a server that does not say where it listens is given up on
LEAVING = 45.0  # seconds that a server may take to end
ENGINE = "ramet.runtime.process"  # in the command line of an engine's process


@dataclass(frozen=True)
class Place:
    """Where rows are measured: the small model of random weights, the real one, what to do with a line of progress, and
    the seed of everything drawn."""

    tiny: str
    real: str
    say: Callable[[str], None]
    seed: int = 1
    folder: Path = field(default_factory=Path.cwd)

    @contextlib.contextmanager
    def server(self, *flags: str, real: bool = False) -> Iterator[Server]:
        """A server for the time of a block. It says nothing, and leaves nothing."""
        model = self.real if real else self.tiny
        command = [sys.executable, "-P", "-m", "ramet", "serve", model, "--port", "0", *flags]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONSAFEPATH": "1"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        server = Server(process)
        try:
            server.await_ready()
            yield server
        finally:
            server.end()


class Server:
    """A server process. `said`: the last lines of its standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: deque[str] = deque(maxlen=2000)
        self.url = ""
        self._known: set[int] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None, "it is a pipe"
        self.said.extend(self.process.stderr)

    def await_ready(self) -> None:
        """Wait for the address that it prints once it is ready. Raises `Unmeasured` with its last words."""
        assert self.process.stdout is not None, "it is a pipe"
        timer = threading.Timer(READY, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                found = re.search(r" at (https?://\S+) ", line)
                if found:
                    self.url = found[1]
                    break
        finally:
            timer.cancel()
        if not self.url:
            self._reader.join(5)
            raise Unmeasured(f"the server did not start: {' '.join(list(self.said)[-3:]).strip()[:300]}")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def family(self) -> list[int]:
        """Its descendants now; they are remembered for `orphans`."""
        found: list[int] = []
        parents = [self.process.pid]
        while parents:
            kids = children(parents.pop())
            found += kids
            parents += kids
        self._known.update(found)
        return found

    def engine(self) -> int | None:
        """The engine's process, if there is one. A process that is yet to become one does not count."""
        for pid in self.family():
            if ENGINE in command_line(pid) and alive(pid):
                return pid
        return None

    def engine_now(self) -> int:
        """The same where one must be there."""
        pid = self.engine()
        if pid is None:
            raise Unmeasured("no engine process was found below the server's")
        return pid

    def orphans(self) -> list[int]:
        """Of all descendants ever seen, those that still run."""
        return [pid for pid in sorted(self._known) if alive(pid)]

    def traces(self) -> int:
        """Lines of its log that begin a Python traceback."""
        return sum("Traceback (most recent call last)" in line for line in self.said)

    def check_alive(self) -> None:
        """Raise `Violation` if the server's process has ended."""
        status = self.process.poll()
        if status is not None:
            raise Violation(f"the server's process ended with status {status}: {' '.join(list(self.said)[-2:])[:300]}")

    def end(self) -> None:
        """SIGTERM twice (no drain), then by force; what is left of its descendants too."""
        self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LEAVING)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.orphans():
            if any(word in command_line(pid) for word in (ENGINE, "ramet.runtime.grammar")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process has started. Raises `Unmeasured` where the system does not tell."""
    found: list[int] = []
    tasks = Path(f"/proc/{pid}/task")
    if not Path("/proc/self/task").exists():
        raise Unmeasured("this system does not list a process's children under /proc")
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                found += [int(each) for each in (task / "children").read_text().split()]
    return found


def command_line(pid: int) -> str:
    """Its words; "" for a process that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def alive(pid: int) -> bool:
    """Whether it runs (or is stopped), and is not just waited for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def resident(pid: int) -> int:
    """Bytes of memory of its own: what is mapped from files is shared, and comes and goes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssShmem"))}
    return 1024 * sum(int(value) for value in found.values())


def descriptors(pid: int) -> int:
    """Its open files."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
