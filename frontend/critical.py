"""Critical paths: which chain of operations decided when a run ended, and how short it could have been.

In: who needs whom, and how long each took or when it ended. Out: chains of names. Graphs are acyclic; a name that is
needed and not there counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Needs = Mapping[str, Sequence[str]]


def ordered(names: Iterable[str], needs: Needs) -> list[str]:
    """The names so that each stands behind all that it needs (depth first, without recursion). What is part of a cycle
    stands where it was met: a run has none, a broken record may."""
    known = dict.fromkeys(names)
    out: dict[str, None] = {}
    entered: set[str] = set()
    for name in known:
        stack = [name]
        while stack:
            top = stack[-1]
            if top in out:
                stack.pop()
            elif top in entered:
                out[stack.pop()] = None
            else:
                entered.add(top)
                stack.extend(n for n in needs.get(top, ()) if n in known and n not in entered)
    return list(out)


def longest(weights: Mapping[str, float], needs: Needs) -> tuple[float, list[str]]:
    """The heaviest chain: the sum of its weights (none is negative), and its names in order. With the decode steps of
    each operation as weights this is the least number of steps that any engine without speculation needs."""
    total: dict[str, float] = {}
    before: dict[str, str] = {}
    for name in ordered(weights, needs):
        found = max((n for n in needs.get(name, ()) if n in total), key=total.__getitem__, default="")
        total[name] = weights[name] + (total[found] if found else 0.0)
        before[name] = found
    if not total:
        return 0.0, []
    last = max(total, key=total.__getitem__)
    return total[last], _back(last, before)


def binding(ends: Mapping[str, float], needs: Needs, last: str = "") -> list[str]:
    """The chain that decided the end of `last` (left out: of what ended last): from there back to, each time, what it
    needed that ended last."""
    if not ends:
        return []
    before = {
        name: max((n for n in needs.get(name, ()) if n in ends and n != name), key=ends.__getitem__, default="")
        for name in ends
    }
    return _back(last or max(ends, key=ends.__getitem__), before)


def _back(last: str, before: Mapping[str, str]) -> list[str]:
    chain, seen = [last], {last}
    while (name := before[chain[-1]]) and name not in seen:
        chain.append(name)
        seen.add(name)
    return chain[::-1]
