"""A server whose processes are watched: what they connect to, open, run and load while clients ask (R8).

In: requests. Out: the audit events that a rule forbids, of the server, its engine and its compiling processes alike.
A `sitecustomize` puts the hook into every Python process that the server starts; a listener and a pipe that clients
name tell of what native code does beside Python.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..server.test_command import ENGINE, Server, command

NAMED = "named-by-a-client"  # stands in every path, host and URL that clients of this suite send
SEEDED = "seeded."
HOOK = """
import json, os, sys, threading

ALWAYS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
          "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "urllib.Request",
          "ctypes.dlopen", "ftplib.connect", "http.client.connect", "smtplib.connect", "sqlite3.connect")
NEVER = ("object.__getattr__", "object.__setattr__", "sys._getframe", "marshal.loads", "gc.get_objects")
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
words = " ".join(sys.orig_argv)
role = "engine" if "ramet.runtime.process" in words else "compiler" if "grammar.child" in words else "server"
busy = threading.local()

def hook(event, args):
    if event in NEVER or getattr(busy, "on", False):
        return
    busy.on = True
    try:
        told = [arg if isinstance(arg, list) else repr(arg)[:300] for arg in args[:2]]
        if event in ALWAYS or os.environ["WATCH_NAMED"] in str(told):
            os.write(log, json.dumps([role, event, told], default=repr).encode() + b"\\n")
    finally:
        busy.on = False

if "ramet" in words:
    sys.addaudithook(hook)
    import seeded
"""
# Faults that wait for a request which asks for one by name: the controls. Nothing else changes in the processes.
SEEDS = """
import ctypes, importlib, importlib.abc, importlib.util, os, socket, sqlite3, subprocess, sys

NAMED, PORT, PATH = os.environ["WATCH_NAMED"], int(os.environ["WATCH_PORT"]), os.environ["WATCH_PATH"]

def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 9))

def listening():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))

def compiler(word):
    subprocess.Popen([sys.executable, "-P", "-m", "ramet.runtime.grammar.child", word], stdin=subprocess.DEVNULL).wait()

ACTIONS = {
    "connects": lambda: socket.create_connection(("127.0.0.1", PORT)).close(),
    "resolves": lambda: socket.getaddrinfo("127.0.0.1", 80),
    "sends": datagram,
    "listens": listening,
    "opens": lambda: open(os.path.join(os.path.dirname(PATH), "x")),
    "lists": lambda: os.listdir(os.path.dirname(PATH)),
    "makes": lambda: os.mkdir(os.path.join(PATH, "x")),
    "removes": lambda: os.remove(os.path.join(PATH, "x")),
    "database": lambda: sqlite3.connect(":memory:").close(),
    "runs": lambda: subprocess.run(["true"]),
    "child": lambda: compiler(NAMED),
    "library": lambda: ctypes.CDLL(NAMED),
    "module": lambda: __import__(NAMED),
    "code": lambda: compile(f"'{NAMED}'", "x", "eval"),
}

def act(text):
    _, found, rest = text.partition("seeded.")
    if found:
        name = rest.split('"')[0].split(".")[0]
        try:
            ACTIONS[name]()
        except (OSError, ImportError):
            pass

def around(module, name, text_of):
    *owners, last = name.split(".")
    owner = module
    for each in owners:
        owner = getattr(owner, each)
    inner = getattr(owner, last)
    def wrapped(*args, **kwargs):
        act(text_of(args))
        return inner(*args, **kwargs)
    setattr(owner, last, wrapped)

PLACES = {
    "ramet.runtime.server.strict_json": (
        "parse",
        lambda args: args[0].decode("utf-8", "replace").replace("at-engine", "") if b"at-server" in args[0] else "",
    ),
    "ramet.runtime.programs": ("Programs.receive", lambda args: getattr(args[1], "name", "")),
}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PLACES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            around(module, *PLACES[name])
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
Entry = tuple[str, str, list[Any]]  # role, event, its first two arguments


@dataclass
class Watched:
    """A running server, and what its processes did since the last `forget`."""

    url: str
    named_url: str
    named_path: str
    log: Path
    listener: socket.socket
    read: int = 0

    def forget(self) -> None:
        """What was done so far was not because of a client."""
        self.read = self.log.stat().st_size

    def entries(self) -> list[Entry]:
        """Everything since then."""
        with self.log.open("rb") as file:
            file.seek(self.read)
            return [tuple(json.loads(line)) for line in file]

    def visitors(self) -> int:
        """Connections that reached what clients have named."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listener.accept()[0].close()
                count += 1
        return count

    def pipe_is_open(self) -> bool:
        """Whether somebody holds, or waits for, the file that clients have named."""
        try:
            os.close(os.open(self.named_path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True


_CHILD = re.compile(r"\d+")


def allowed(entry: Entry) -> bool:
    """Our own process that compiles constraints, begun (it warms up beside the first requests) or begun anew, with
    nothing of a client's among its words; and a process that looks at itself by `ctypes.CDLL(None)`."""
    role, event, told = entry
    if event == "ctypes.dlopen":
        return told == ["None"]
    if (role, event, len(told)) != ("server", "subprocess.Popen", 2) or len(told[1]) != 5:
        return False
    python, *words, number = told[1]
    ours = words == ["-P", "-m", "ramet.runtime.grammar.child"] and told[0] == repr(python)
    return ours and Path(python).name.startswith("python") and bool(_CHILD.fullmatch(number))


def suspicious(watched: Watched) -> list[Entry]:
    """The check: what a server may not do because of a client."""
    found = [entry for entry in watched.entries() if not allowed(entry)]
    if visitors := watched.visitors():
        found.append(("somebody", "connected", [visitors]))
    if watched.pipe_is_open():
        found.append(("somebody", "opened", [watched.named_path]))
    return found


@contextlib.contextmanager
def watching(folder: Path, *arguments: str) -> Iterator[Watched]:
    """`ramet serve` in processes that are watched."""
    hooks = folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK)
    (hooks / "seeded.py").write_text(SEEDS)
    (folder / NAMED).mkdir()
    path = folder / NAMED / "pipe"
    os.mkfifo(path)
    log = folder / "log"
    log.touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        environment = {
            "WATCH_LOG": str(log),
            "WATCH_NAMED": NAMED,
            "WATCH_PORT": str(port),
            "WATCH_PATH": str(path),
            "PYTHONPATH": str(hooks),
        }
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command("serve", *ENGINE, "--port", "0", *arguments),
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, **environment},
        ) as process:
            try:
                server = Server(process)
                yield Watched(server.url, f"http://127.0.0.1:{port}/{NAMED}", str(path), log, listener)
            finally:
                process.kill()
