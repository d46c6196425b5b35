"""What a workload is given. In: its number, a seed, a scale. Out: rows, one a program; both ways to write a workload
take the same rows.

The scale multiplies programs (chats, questions, agents) and leaves their lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from programs_parts.texts import CITIES, Texts, retrieved

DIMENSIONS = ("clarity", "evidence", "structure", "originality", "tone", "accuracy")
LETTERS = (" A", " B", " C", " D")
GRADES = ("1", "2", "3", "4", "5")
YES = (" yes", " no")
SKELETON, SHOTS, CANDIDATES, CHAINS, TURNS = 6, 5, 5, 8, 6
LONGEST = 160  # tokens of a chain of thought; most end long before it
TOOL_SECONDS = (0.05, 0.3)  # of the agents under memory pressure
LOOK_UP = 0.02  # seconds that a look-up of the ReAct agents takes


@dataclass(frozen=True, slots=True)
class Turn:
    """An agent's tool: how long it takes and what it says."""

    seconds: float
    result: str


@dataclass(frozen=True, slots=True)
class Row:
    """One program's arguments: `texts` in the order in which it says them, `turns` of its tools, `lengths` in tokens of
    chains that would end by themselves at different places."""

    texts: tuple[str, ...]
    turns: tuple[Turn, ...] = ()
    lengths: tuple[int, ...] = ()


def rows(number: int, seed: int, scale: int, pace: float = 1.0) -> list[Row]:
    """The rows of workload `number` (0 to 13). Tools take `pace` times as long: what is best while one runs depends on
    how long it takes beside computing again what it would keep, and a tiny model computes that in no time."""
    made = _MAKERS[number](Texts(1000 * seed + number), scale)
    return [replace(row, turns=tuple(Turn(pace * t.seconds, t.result) for t in row.turns)) for row in made]


def _control(made: Texts, scale: int) -> list[Row]:
    return [Row((f"{made.prose(2)} {made.question()} Tell me more.\n",)) for _ in range(12 * scale)]


def _choices(made: Texts, scale: int) -> list[Row]:
    found = []
    for subject in range(4 * scale):
        head = f"Sums of the {subject + 1}. series.\n\n"
        shots = head + "".join(made.multiple_choice(solved=True) for _ in range(SHOTS))
        found += [Row((shots, made.multiple_choice(solved=False))) for _ in range(10)]
    return found


def _endings(made: Texts, scale: int) -> list[Row]:
    shots = "".join(f"{made.sentence()} Then{made.ending()}\n\n" for _ in range(10))
    found = []
    for _ in range(16 * scale):
        ends: dict[str, None] = {}
        while len(ends) < 4:
            ends[made.ending()] = None
        found.append(Row((shots, f"{made.sentence()} Then", *ends)))
    return found


def _agents(made: Texts, scale: int) -> list[Row]:
    shots = "Find out with look-ups.\n" + "".join(
        f"Question: {made.question()}\nThought: I look it up.\nAction: look\nObservation: {made.sentence()}\n"
        for _ in range(3)
    )
    return [
        Row((shots, f"Question: {made.question()}\n"), tuple(Turn(LOOK_UP, made.sentence()) for _ in range(TURNS)))
        for _ in range(6 * scale)
    ]


def _problems(made: Texts, scale: int) -> list[Row]:
    base = f"We solve problems in short steps.\n{made.prose(4)}\n"
    return [Row((base, f"Problem: {made.question()}\n")) for _ in range(3 * scale)]


def _questions(made: Texts, scale: int) -> list[Row]:
    return [Row((f"{made.prose(1)} {made.question()}",)) for _ in range(4 * scale)]


def _essays(made: Texts, scale: int) -> list[Row]:
    return [Row((made.prose(7),)) for _ in range(6 * scale)]


def _invoices(made: Texts, scale: int) -> list[Row]:
    return [Row((made.invoice(),)) for _ in range(12 * scale)]


def _chats(made: Texts, users: int, turns: int, sentences: int) -> list[Row]:
    return [Row(tuple(f"User: {made.prose(sentences)} {made.question()}" for _ in range(turns))) for _ in range(users)]


def _short(made: Texts, scale: int) -> list[Row]:
    return _chats(made, 6 * scale, 4, 2)


def _long(made: Texts, scale: int) -> list[Row]:
    return _chats(made, 4 * scale, 4, 1)


def _retrieval(made: Texts, scale: int) -> list[Row]:
    documents = [made.prose(3) for _ in range(24)]
    found = []
    for _ in range(12 * scale):
        question = made.question()
        found.append(Row((question, *(documents[k] for k in retrieved(question, documents, CANDIDATES)))))
    return found


def _private(made: Texts, scale: int) -> list[Row]:
    found = []
    for number in range(12 * scale):
        city = CITIES[number % len(CITIES)]
        session = f"Session {number} of the agent of {city}. {made.prose(10)}\n"
        turns = tuple(Turn(made.rng.uniform(*TOOL_SECONDS), made.question()) for _ in range(TURNS))
        found.append(Row((session,), turns))
    return found


def _chains(made: Texts, scale: int) -> list[Row]:
    found = []
    for _ in range(4 * scale):
        lengths = tuple(min(LONGEST, 24 + int(made.rng.expovariate(1 / 40))) for _ in range(CHAINS))
        found.append(Row((f"{made.prose(1)} {made.question()} Let us think step by step.",), lengths=lengths))
    return found


def _tasks(made: Texts, scale: int) -> list[Row]:
    return [
        Row((f"Task: {made.prose(3)}\nAct:",), (Turn(0.0, made.sentence()), Turn(0.0, made.sentence())))
        for _ in range(4 * scale)
    ]


_MAKERS = (
    _control,
    _choices,
    _endings,
    _agents,
    _problems,
    _questions,
    _essays,
    _invoices,
    _short,
    _long,
    _retrieval,
    _private,
    _chains,
    _tasks,
)
