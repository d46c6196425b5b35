"""`ramet chat`: a conversation on a terminal, or one answer to a piped prompt.

In: lines that a person types, or standard input. Out: answers on standard output as they come; everything else on
standard error.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ramet.frontend.backends.base import Backend
from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.screen import plain, told, write
from ramet.frontend.commands.turn import Message, Turn, conversing
from ramet.frontend.errors import ContextOverflow, RametError, TransportError
from ramet.frontend.program import Program

if TYPE_CHECKING:
    from ramet.frontend.backends.engine import Early

HELP = """\
/reset        forget the conversation (the system message stays)
/system TEXT  set the system message; without TEXT there is none
/stats        tokens, cached tokens and pace of the last answer
/tree         the last answer's program as a tree
/exit         leave (so does Ctrl-D)
Ctrl-C stops an answer, \\ at the end of a line continues it on the next, // begins a message with a slash."""
COMMANDS = ("/reset", "/system", "/stats", "/tree", "/help", "/exit", "/quit")


@dataclass(frozen=True)
class Options:
    """What the command line says. `url` "" is $OPENAI_BASE_URL, and without one an engine here; `model` "" is the
    default model here, the first one that a server names elsewhere; None leaves the program's own default."""

    url: str = ""
    model: str = ""
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    api_key: str = ""
    threads: int = 0
    dtype: str = "auto"


def chat(options: Options, early: Early | None = None) -> None:
    """Converse until the person leaves; or answer what is piped in. Raises `RametError`; `WrongUsage` for what cannot
    be meant."""
    program = conversing({"max_tokens": options.max_tokens, "temperature": options.temperature})
    interactive = sys.stdin.isatty()
    prompt = "" if interactive else piped()
    with _backend(options, interactive, early) as backend:
        talk = Conversation(backend, program, options.system, options.max_tokens)
        if interactive:
            _loop(talk)
        else:
            talk.ask(prompt)


def piped() -> str:
    """All of standard input. Raises `WrongUsage` when it is no text, or empty."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"standard input is no UTF-8 text: {error.reason} at byte {error.start}") from None
    if not text.strip():
        raise WrongUsage("standard input is empty: pipe a prompt in, or run it on a terminal")
    return text


@contextlib.contextmanager
def _backend(options: Options, interactive: bool, early: Early | None) -> Iterator[Backend]:
    from ramet.frontend.commands.opening import address, chat_server, key_of, opened_engine

    url, name = (options.url, "URL") if options.url else (os.environ.get("OPENAI_BASE_URL", ""), "OPENAI_BASE_URL")
    if not url:
        model, threads, dtype = options.model or "default", options.threads, options.dtype
        with opened_engine(model, threads=threads, dtype=dtype, announce=interactive, early=early) as engine:
            yield engine
        return
    if options.dtype != "auto":
        raise WrongUsage(f"--dtype {options.dtype}: is for an engine here; leave it out, the server has its own")
    key = options.api_key or key_of(openai_first=not options.url)
    with chat_server(address(url, name), options.model, key) as server:
        if interactive:
            write(sys.stderr, f"{server.model} at {server.url}\n")
        yield server


class Conversation:
    """The messages so far, and what is said next. `last` is the last answer."""

    def __init__(
        self, backend: Backend, program: Program[..., str], system: str = "", max_tokens: int | None = None
    ) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.last: Turn | None = None
        self._backend = backend
        self._program = program
        self._max_tokens = max_tokens

    def ask(self, text: str) -> None:
        """Say something and show the answer; both become part of the conversation. An answer that Ctrl-C stopped stays
        as far as it came, and `KeyboardInterrupt` is raised; after an error the conversation is as it was before."""
        said: list[Message] = [*self.messages, ("user", text)]
        system: list[Message] = [("system", self.system)] if self.system else []
        turn = Turn(self._backend, [*system, *said], self._program)
        self.last = turn
        try:
            turn.follow(lambda piece: write(sys.stdout, piece))
        except KeyboardInterrupt:
            if turn.text:
                self.messages = [*said, ("assistant", turn.text)]
            raise
        finally:
            if turn.text and not turn.text.endswith("\n"):
                write(sys.stdout, "\n")
        self.messages = [*said, ("assistant", turn.text)]
        if cut := turn.cut(self._max_tokens):
            write(sys.stderr, f"[{cut}]\n")


def _loop(talk: Conversation) -> None:
    read = _reader()
    write(sys.stderr, "/help lists the commands, Ctrl-D leaves\n")
    going_on = True
    while going_on:
        try:
            going_on = _exchange(talk, read)
        except KeyboardInterrupt:  # at the prompt, or a second one while the first was dealt with
            write(sys.stderr, "\n[Ctrl-D or /exit leaves]\n")


def _exchange(talk: Conversation, read: Callable[[str], str]) -> bool:
    """One line and what comes of it; False when the person leaves."""
    line = _line(read)
    if line is None:
        return False
    if line.startswith("/") and not line.startswith("//"):
        return command(talk, line)
    if line.strip():
        _turn(talk, line[1:] if line.startswith("//") else line)
    return True


def _turn(talk: Conversation, text: str) -> None:
    try:
        talk.ask(text)
    except KeyboardInterrupt:
        write(sys.stderr, "[stopped]\n")
    except RametError as error:
        write(sys.stderr, f"error: {told(error)}{_remedy(error)}\n")


def _remedy(error: RametError) -> str:
    if isinstance(error, ContextOverflow):
        return "; /reset begins a new conversation"
    if isinstance(error, TransportError):
        return "; your message was not answered: say it again when the server is back"
    return ""


def command(talk: Conversation, line: str) -> bool:
    """Carry out a line that begins with a slash; False when it says to leave."""
    name, _, rest = line.strip().partition(" ")
    if name in ("/exit", "/quit"):
        return False
    if name == "/reset":
        talk.messages, talk.last = [], None
        told_back = "the conversation begins anew"
    elif name == "/system":
        talk.system = rest.strip()
        told_back = "the system message is set" if talk.system else "there is no system message"
    elif name == "/stats":
        told_back = talk.last.stats() if talk.last else "nothing was answered yet"
    elif name == "/tree":
        told_back = plain(talk.last.run.tree()) if talk.last else "nothing was answered yet"
    elif name == "/help":
        told_back = HELP
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else "/help lists them"
        told_back = f"there is no command {plain(name)}; {meant} (// begins a message with a slash)"
    write(sys.stderr, f"{told_back}\n")
    return True


def _reader() -> Callable[[str], str]:
    """A function that shows a prompt and reads a line, with the editing of a terminal where there is one."""
    if not sys.stdout.isatty():  # answers go to a file: what belongs to the terminal must not

        def read(prompt: str) -> str:
            write(sys.stderr, prompt)
            return input()

        return read
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it once it is there)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return input
    return lambda prompt: input(f"\x01\x1b[1;36m\x02{prompt}\x01\x1b[0m\x02")


def _line(read: Callable[[str], str]) -> str | None:
    """What the person says next, lines that end in a backslash joined; None at the end."""
    lines: list[str] = []
    while True:
        try:
            lines.append(read("... " if lines else ">>> "))
        except EOFError:
            write(sys.stderr, "\n")
            return None
        except UnicodeDecodeError:
            write(sys.stderr, "error: what was typed is no UTF-8 text\n")
            lines = []
            continue
        if not lines[-1].endswith("\\"):
            break
        lines[-1] = lines[-1][:-1]
    text = "\n".join(lines)
    return text.encode("utf-8", "replace").decode("utf-8")  # undecodable bytes arrive as lone surrogates
