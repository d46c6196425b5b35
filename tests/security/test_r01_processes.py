"""R1, between processes: messages are schema-checked msgpack over `ipc://` sockets in a fresh directory of mode 0700.
The one socket that anything listens at is the HTTP port, on the loopback interface unless somebody says otherwise.

Positive controls: links with one fault each, under which the same checks fail.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec
import pytest
import zmq

from ramet.frontend.errors import EngineError
from ramet.runtime import messages as m
from ramet.runtime import ports
from ramet.runtime.ports import SOCKETS, ProcessLink, ZmqPort
from ramet.runtime.server.settings import Settings
from ramet.runtime.start import configure

from ..server.serving import TINY, WAIT
from ..server.test_command import Server, serve

ROOT = Path(ports.__file__).parents[1]
LISTEN = "0A"  # of /proc/net/tcp


# -- what listens


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def listeners(pids: list[int]) -> list[tuple[str, int]]:
    """Addresses (hexadecimal, as the kernel shows them) and ports at which these processes wait for others: TCP that
    listens, and every UDP socket, with which anybody may talk."""
    inodes = set().union(*map(sockets_of, pids))
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (not kind.startswith("tcp") or fields[3] == LISTEN):
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


LOOPBACK = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}"


def one_port(server: Server) -> None:
    """The check: one listener in all processes of a server, on the loopback interface, at the port that it names."""
    pids = [server.process.pid, *server.engines()]
    assert len(pids) >= 2, "the engine is a process of its own"
    assert listeners(pids) == [(LOOPBACK, int(server.url.rpartition(":")[2]))]


@pytest.mark.model
def test_one_port_is_open_and_nothing_lies_about_between_the_processes() -> None:
    """By default. After the first answer the sockets' names are gone: nobody else can connect to them."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        with serve() as server:
            one_port(server)
            body = {"text": "x", "sampling_params": {"max_new_tokens": 1, "regex": "a"}}
            assert httpx.post(f"{server.url}/generate", json=body, timeout=WAIT).status_code == 200
            one_port(server)  # with what compiles constraints, and after an answer
            assert os.listdir(folder) == []
            server.process.send_signal(signal.SIGTERM)
            server.ended()
        assert os.listdir(folder) == []
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_control_a_listener_is_seen(host: str, kind: socket.SocketKind) -> None:
    before = listeners([os.getpid()])
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind((host, 0))
        if kind == socket.SOCK_STREAM:
            assert listeners([os.getpid()]) == before, "nobody waits there yet"
            made.listen()
        found = listeners([os.getpid()])
        assert len(found) == len(before) + 1
        assert (host == "127.0.0.1") == ((LOOPBACK, made.getsockname()[1]) in found)


# -- the link


class Silent:
    """A process that does nothing: of the link, only its sockets are looked at."""

    def __init__(self) -> None:
        self.stdin = None
        self.returncode = 0
        inside, self._outside = os.pipe()
        self.stdout: Any = os.fdopen(inside, "rb")

    def wait(self, seconds: float | None = None) -> int:
        """At once."""
        return 0

    def kill(self) -> None:
        """Nothing is there."""

    def end(self) -> None:
        """Close the other end of its standard output."""
        os.close(self._outside)


@contextlib.contextmanager
def linked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ProcessLink, list[str]]]:
    """A link without an engine, and the addresses to which it was bound."""
    process = Silent()
    bound: list[str] = []
    inner = zmq.Socket.bind

    def bind(self: Any, address: str) -> Any:
        bound.append(address)
        return inner(self, address)

    with monkeypatch.context() as patch:
        patch.setattr(ports, "_spawn", lambda *arguments: process)
        patch.setattr(zmq.Socket, "bind", bind)
        link = ProcessLink(configure("random:tiny", TINY))
        try:
            yield link, bound
        finally:
            link.release()
            process.end()


def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check: two `ipc://` sockets in a directory of their own, which is ours alone whatever the umask is, and which
    is another one for each engine."""
    before = os.umask(0)
    try:
        with linked(monkeypatch) as (one, bound), linked(monkeypatch) as (other, _):
            folder = Path(one._directory)
            assert bound[:2] == [f"ipc://{folder}/{name}" for name in SOCKETS]
            found = folder.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())
            assert sorted(os.listdir(folder)) == sorted(SOCKETS) and one._directory != other._directory
        assert not folder.exists()
    finally:
        os.umask(before)


def test_sockets_are_in_a_directory_that_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    private(monkeypatch)


MADE = tempfile.mkdtemp


def _shared(prefix: str) -> str:
    path = Path(MADE(prefix=prefix))
    path.chmod(0o755)
    return str(path)


def _the_same(prefix: str) -> str:
    path = Path(tempfile.gettempdir()) / f"{prefix}{os.getpid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return str(path)


def _tcp(self: ProcessLink, kind: int, name: str) -> Any:
    made = self._context.socket(kind)
    made.bind("tcp://127.0.0.1:*")
    return made


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "a directory that others may read": (ports.tempfile, "mkdtemp", _shared),
    "one directory for all": (ports.tempfile, "mkdtemp", _the_same),
    "TCP": (ProcessLink, "_bind", _tcp),
    "it is left behind": (ports.shutil, "rmtree", lambda path, ignore_errors: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_control_other_sockets_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises((AssertionError, EngineError)):
        private(monkeypatch)


def addresses(source: str) -> list[str]:
    """Texts of a source that name a transport other than a socket file or this process's memory."""
    texts = [
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and type(node.value) is str
    ]
    return [text for text in texts if text.startswith(("tcp://", "pgm://", "epgm://", "udp://", "ws://", "vmci://"))]


def test_no_source_names_another_transport() -> None:
    parts = ("runtime", "frontend", "kernels", "ramet")
    texts = {path: path.read_text("utf-8") for part in parts for path in (ROOT / part).rglob("*.py")}
    assert [path.name for path, text in texts.items() if "://" in text and addresses(text)] == []
    assert addresses('socket.bind(f"tcp://{host}:5555")') and addresses('x = "udp://*:1"'), "the control"


# -- what is said over it

WRONG = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "a list": msgspec.msgpack.encode([1, 2]),
    "no type": msgspec.msgpack.encode({"program": "x"}),
    "another type": msgspec.msgpack.encode({"type": "run", "program": "x"}),
    "a number for a name": msgspec.msgpack.encode({"type": "open", "program": 5}),
    "an operation of no kind": msgspec.msgpack.encode({"type": "ops", "program": "x", "ops": [{"type": "exec"}]}),
    "code for an extension": msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"os.system")),
}


def accepted(decode: Any) -> list[str]:
    """Wrong messages that a decoder takes."""
    taken = []
    for name, data in WRONG.items():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            decode(data)
            taken.append(name)
    return taken


def test_both_ends_check_what_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = ZmqPort(str(tmp_path))
    try:
        assert accepted(port._decoder.decode) == []
        assert accepted(msgspec.msgpack.decode), "the control: without a schema"
    finally:
        port._context.destroy(linger=0)
    with linked(monkeypatch) as (link, _):
        assert accepted(link._decoder.decode) == []
    every = [kind for union in (m.Order, m.Report) for kind in get_args(union)]
    assert len(every) > 8 and all(issubclass(kind, msgspec.Struct) for kind in every)
    assert all(kind.__struct_config__.frozen and kind.__struct_config__.tag for kind in every)


def test_a_wrong_message_ends_the_link_and_not_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine that was taken over sends is no object of ours: the thread that reads is told by an error."""
    with linked(monkeypatch) as (link, _):
        pusher = link._context.socket(zmq.PUSH)
        pusher.connect(f"ipc://{link._directory}/{SOCKETS[1]}")
        pusher.send(WRONG["a pickle"])
        with pytest.raises(msgspec.DecodeError):
            link.receive()
        pusher.close(linger=0)
