"""A program of 45 calls with forks, choices, tools, samples and programs inside programs; a process that dies at any
point of it; what must hold when the run is resumed. Run as a script, it forks a process for every death: importing
ramet once is what takes time.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ramet as rt
from ramet.frontend import journal, journal_run, journal_session
from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.backends.through import Through
from ramet.frontend.ir import AnyOp, Event, Gen, Header, Put, Select
from ramet.frontend.journal_file import JournalFile
from ramet.frontend.journal_run import Scope, derived_seed, idempotency_key_of

SEED = 20
KINDS = ("commit", "committed", "send", "sent", "receive", "received", "tool", "told")
DIED = 77
WAIT = 30.0


def answer(prompt: str, var: str) -> str:
    """Words that depend on every character of the prompt."""
    digest = hashlib.blake2b(f"{var} {prompt}".encode(), digest_size=8).hexdigest()
    return " ".join(digest[k : k + 4] for k in range(0, 16, 4))


@dataclass
class Log:
    """What was done outside of the journal: a line per call that a backend was given, and per call of a tool, in a file
    that outlives the process."""

    path: Path
    die: Callable[[str], None] = lambda kind: None

    def note(self, what: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{what}\n")

    def all(self, kind: str) -> list[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


class Watched(Through):
    """A backend that notes every call that it is given, and dies when it is told to."""

    def __init__(self, backend: Backend, log: Log) -> None:
        super().__init__(backend)
        self._log = log
        self.opened = 0

    def open(self, header: Header, deliver: Deliver) -> Session:
        self.opened += 1

        def told(event: Event) -> None:
            self._log.die("receive")
            deliver(event)
            self._log.die("received")

        return _Watched(self.backend.open(header, told), self._log, f"{header.name}/{header.seed}")


class _Watched:
    def __init__(self, session: Session, log: Log, name: str) -> None:
        self._session = session
        self._log = log
        self._name = name
        self.end, self.cancel = session.end, session.cancel

    def send(self, ops: Sequence[AnyOp]) -> None:
        self._log.die("send")
        for op in ops:
            if isinstance(op, Gen | Select):
                self._log.note(f"call {self._name}:{op.id}")
        self._session.send(ops)
        self._log.die("sent")


def program(log: Log) -> rt.Program[[str], dict[str, Any]]:
    """The program; its tools write to `log`."""

    def charge(what: str) -> dict[str, object]:
        log.die("tool")
        log.note(f"tool charge {rt.idempotency_key()} {what}")
        log.die("told")
        return {"charged": what, "pair": (1, 2.5), "rest": None}

    @rt.idempotent
    def lookup(what: str) -> str:
        log.die("tool")
        log.note(f"tool lookup {rt.idempotency_key()} {what}")
        log.die("told")
        return what.upper()

    def broken(what: str) -> str:
        log.note(f"tool broken {rt.idempotency_key()} {what}")
        raise ValueError(what)

    @rt.function
    def judge(s: rt.State, text: str) -> str:
        s.user(f"Judge: {text}")
        s += rt.gen("thought", max_tokens=3)
        s.select(["good", "bad"], name="grade")
        return s["grade"] + s.reply(name="why", max_tokens=4).get()

    @rt.function
    def work(s: rt.State, topic: str) -> dict[str, Any]:
        s.system("You work.")
        s.user(topic)
        plan = s.reply(name="plan", max_tokens=8)
        branches = s.fork([f"item {k}" for k in range(5)])
        for branch in branches:
            branch += f"\n{branch.item}: "
            first = branch.gen(name="first", max_tokens=4, logprobs=0)
            branch.select(["left", "right"], name="side")
            branch += branch.call(lookup, first)
            branch.gen(name="second", max_tokens=3)
        branches.join("concat")
        for turn in range(3):
            s.user(f"turn {turn}")
            said = s.reply(name=f"turn{turn}", max_tokens=5)
            s.tool(str(s.call(charge, said).get()["charged"]))
        judged = [s.call(lambda text=text: judge(text).result()) for text in s["second"][:3]]
        inner = judge(plan.get()).result()
        samples = s.gen(name="samples", n=3, max_tokens=3).get()
        with s.copy() as aside:
            aside += " aside: "
            aside.gen(name="aside", max_tokens=2)
            try:
                aside.call(broken, plan).get()
            except rt.ToolError as error:
                s += str(error)
        tail = s.gen(name="tail", max_tokens=6)
        out = {name: s[name] for name in ("plan", "first", "side", "second", "turn0", "turn1", "turn2", "aside")}
        out |= {"judged": [each.get() for each in judged], "inner": inner, "samples": samples, "tail": tail.get()}
        return {**out, "text": s.text()}

    return work


CALLS = 36  # generations and choices of it: 1 + 5 * 3 + 3 + 4 * 3 + 3 + 1 + 1
TOOLS = 9  # calls of tools: 5 + 3 + 1


def once(log: Log, path: Path | None, run: str | None = None, backend: Backend | None = None) -> dict[str, Any]:
    """The program's result. A new run's id is noted before anything else happens to it."""
    watched = Watched(backend or rt.Mock(answer), log)
    options = {} if path is None else {"journal": path, "resume": run}
    handle = program(log).using(backend=watched, seed=SEED, timeout=WAIT, **options)("the topic")
    if path is not None and run is None:
        log.note(f"run {handle.id}")
    result: dict[str, Any] = handle.result(WAIT)
    return result


@contextmanager
def dying(log: Log, kind: str, k: int) -> Iterator[None]:
    """The process ends, without a word, at the k-th point of a kind (counted from 0)."""
    left = [k]

    def die(at: str) -> None:
        if at == kind:
            left[0] -= 1
            if left[0] < 0:
                os._exit(DIED)

    write = JournalFile.write

    def wrote(file: JournalFile, statements: Any) -> None:
        die("commit")
        write(file, statements)
        die("committed")

    log.die = die
    with mock.patch.object(JournalFile, "write", wrote):
        yield


@dataclass
class Story:
    """One death and what followed: whether the process died, what the resumed run gave, the calls that it made although
    they had finished, and what else was wrong."""

    died: bool
    result: Any
    again: list[str]
    twice: list[str]  # tools that were called twice though they are not idempotent, and nobody had said so
    keys: list[str]  # calls of tools that had more than one idempotency key
    settled: int  # interrupted calls that were to be made again
    problem: str = ""


def check(story: Story, expected: Any) -> list[str]:
    """What is wrong with a story: nothing, where the promise is kept."""
    wrong = [] if story.result == expected else [f"the result differs: {story.problem or story.result}"]
    wrong += [f"{call} had finished and was made again" for call in story.again]
    wrong += [f"{call} was made twice" for call in story.twice]
    return wrong + [f"{call} has several keys" for call in story.keys]


CHILD = Scope.child


def _elsewhere(scope: Scope, *arguments: Any) -> Scope:
    made = CHILD(scope, *arguments)
    made._prefix = os.urandom(4).hex() + made._prefix
    return made


# What a journal must not do: each breaks one rule, in the process that resumes. The check must see it.
MUTATIONS: dict[str, tuple[object, str, Any]] = {
    "finished calls are forgotten": (Scope, "finished", lambda scope, op: None),
    "interrupted tools are called again": (journal_run, "is_idempotent", lambda fn: True),
    "keys are drawn": (Scope, "key", lambda scope, op: os.urandom(16).hex()),
    "values are cut": (journal_session, "_as_known", lambda op, done: [Put(id=op.id, seq=op.seq, var="", value="x")]),
    "programs inside are new runs": (Scope, "child", _elsewhere),
}


def tell(folder: Path, kind: str, k: int, mutation: str = "") -> Story:
    """Run the program in a forked process that dies, then resume it in others, until it is through."""
    folder.mkdir()
    path, log, answers = folder / "runs.db", Log(folder / "log"), folder / "answers"
    log.path.touch()  # who dies early has noted nothing
    died = _forked(lambda: _die(log, path, kind, k)) == DIED
    finished, before = _finished(path), log.all("tool")
    log.path.rename(folder / "before")
    settled: list[str] = []
    while _forked(lambda: _resume(log, path, answers, mutation)) != 0:
        [row] = journal.runs(str(path))
        interrupted = list(journal.uncertain(str(path), row.run))
        if not interrupted or len(settled) > 20:
            break
        for op in interrupted:
            journal.settle(str(path), row.run, op, None)
            settled.append(idempotency_key_of(row.run, op))
        let_go()  # SQLite's state of an open file must not be forked
    answer = json.loads(answers.read_text())
    called = [line.split(" ", 2) for line in before + log.all("tool")]
    made = set(log.all("call")) | {line.split()[1] for line in log.all("tool")}
    charged = Counter(key for name, key, _ in called if name == "charge")
    keys: dict[str, set[str]] = {}
    for name, key, what in called:
        keys.setdefault(f"{name} {what}", set()).add(key)
    return Story(
        died,
        answer.get("result"),
        sorted(made & finished),
        [key for key, count in charged.items() if count > 1 + settled.count(key)],
        [what for what, some in keys.items() if len(some) > 1],
        len(settled),
        answer.get("problem", ""),
    )


def let_go() -> None:
    """Wait until every run has ended, and every host call of one: the journal's thread ends with the last."""
    for thread in threading.enumerate():
        if thread.name == "ramet-journal":
            thread.join(WAIT)
            assert not thread.is_alive()


def _die(log: Log, path: Path, kind: str, k: int) -> None:
    with dying(log, kind, k):
        once(log, path)


def _resume(log: Log, path: Path, answers: Path, mutation: str) -> None:
    target, name, replaced = MUTATIONS.get(mutation, (Log, "note", Log.note))
    try:
        [row] = journal.runs(str(path))
        with mock.patch.object(target, name, replaced):
            answers.write_text(json.dumps({"result": once(log, path, row.run)}))
    except BaseException as error:
        answers.write_text(json.dumps({"problem": f"{type(error).__name__}: {error}"}))
        raise


def _finished(path: Path) -> set[str]:
    """What the journal says has finished: calls as the log has them, keys of tools."""
    found: set[str] = set()
    for row in journal.runs(str(path)):
        file = JournalFile(str(path))
        for op, call in file.calls(row.run).items():
            if call.kind != "host":
                inside, _, own = op.rpartition(":")
                seed = derived_seed(SEED, f"{inside}:") if inside else SEED
                found.add(f"{'judge' if inside else 'work'}/{seed}:{own}")
            elif call.state != "begun":
                found.add(idempotency_key_of(row.run, op))
        file.close()
    return found


def _forked(act: Callable[[], None]) -> int:
    """The exit status of a forked process that does it."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001 (the parent has the status)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: str, points: str) -> None:
    """Tell the story of every point ([[kind, k, mutation], ...] in JSON), a line of JSON each; k = -1 is "for k = 0, 1,
    ... until the process does not die any more"."""
    for number, (kind, k, mutation) in enumerate(json.loads(points)):
        for at in range(1000) if k < 0 else [k]:
            story = tell(Path(folder) / f"{number}-{kind}{at}", kind, at, mutation)
            sys.stdout.write(json.dumps([kind, at, mutation, vars(story)]) + "\n")
            sys.stdout.flush()
            if not story.died:
                break


def die_elsewhere(log: Log, path: Path, kind: str, k: int) -> int:
    """The exit status of a process, with nothing of this one's threads, that dies at a point."""
    command = [sys.executable, "-P", __file__, str(log.path), str(path), kind, str(k)]
    return subprocess.run(command, timeout=WAIT, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) == 5:
        _die(Log(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main(*sys.argv[1:])
