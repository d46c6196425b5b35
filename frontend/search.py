"""Searches: paths of several steps, of which the best go on.

In: a state, and a function that records one step on a branch. Out: the values along the best path; the state goes on
from its end, all other branches are cancelled. All branches of a level are recorded before any is read, so a level is
one submission, whatever its width. Names with an "a" before them are for async bodies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ramet.frontend.rating import Judge, check_callable, check_count, one_of, rates
from ramet.frontend.state import State
from ramet.frontend.trials import Arena, Steps, Trial, awaiting, blocking
from ramet.frontend.where import user_line

T = TypeVar("T")

Step = Callable[[State, int], Awaitable[T]]


@dataclass(frozen=True)
class BestPath(Generic[T]):
    """The best path of a search: the values of its steps, in order, and what it was rated."""

    values: tuple[T, ...]
    score: float


@dataclass(frozen=True)
class _Node(Generic[T]):
    branch: State
    path: tuple[Trial[T], ...]


@dataclass(frozen=True)
class _Shape(Generic[T]):
    """How a search goes: `n` steps from each node, the best `keep` of a level go on (None: all), `depth` levels."""

    step: Step[T]
    n: int
    keep: int | None
    depth: int
    judge: Judge | None
    score: Callable[[tuple[T, ...]], float] | None


def _beam(
    s: State,
    step: Step[T],
    /,
    *,
    n: int,
    width: int,
    depth: int,
    score: Callable[[tuple[T, ...]], float] | None = None,
) -> Steps[BestPath[T]]:
    """Beam search over steps of text: `n` continuations of each of `width` paths, `depth` levels; the state goes on
    from the best path.

    `step(branch, level)` records one step (level 0, 1, ...) and returns its value, unread. A path is ranked by
    `score(values)`, a number, or by the mean logprob of all tokens of its steps, which they generate with
    `logprobs=0`; of equals, the one whose beginning was ranked higher, then the one recorded first. A step whose text
    cannot be read as its type (`ParseError`) ends its path; any other failure is raised.

    Raises `ConstraintError` for n < 1, width < 1 or > n, depth < 1, and the first `ParseError` when no path is left.
    (Over steps instead of tokens: Xie et al., "Self-Evaluation Guided Beam Search for Reasoning", 2023.)
    """
    where = user_line()
    check_count("n", n, where)
    check_count("width", width, where, most=n)
    check_count("depth", depth, where)
    check_callable("step", step, where)
    one_of({"score": score}, where, optional=True)
    return (yield from _searched(s, "beam", where, _Shape(step, n, width, depth, None, score)))


def _tree_search(
    s: State,
    propose: Step[T],
    /,
    *,
    n: int,
    depth: int,
    keep: int | None = None,
    judge: Judge | None = None,
    score: Callable[[tuple[T, ...]], float] | None = None,
) -> Steps[BestPath[T]]:
    """Tree of thoughts, breadth first: `n` proposals from each node, the best `keep` of a level go on, `depth` levels;
    the state goes on from the best leaf.

    `propose(branch, level)` records one thought (level 0, 1, ...) and returns its value, unread. A node is rated by
    `judge(branch)`, which asks the model on a side branch and returns the value of its rating, unread (a number, or a
    choice among numerals), or by `score(values)` of the thoughts up to it; of equals, the one whose parent was rated
    higher wins, then the one recorded first. Nodes are rated where some have to go: on levels with more than `keep`,
    and on the last. A thought whose text cannot be read as its type (`ParseError`) ends its path; any other failure
    is raised.

    Raises `ConstraintError` for n, depth or keep < 1, and unless one of judge and score is given; the first
    `ParseError` when no path is left.
    (Yao et al., "Tree of Thoughts: Deliberate Problem Solving with Large Language Models", 2023: ToT-BFS.)
    """
    where = user_line()
    check_count("n", n, where)
    check_count("depth", depth, where)
    if keep is not None:
        check_count("keep", keep, where)
    check_callable("propose", propose, where)
    one_of({"judge": judge, "score": score}, where)
    return (yield from _searched(s, "tree_search", where, _Shape(propose, n, keep, depth, judge, score)))


def _searched(s: State, name: str, where: str, shape: _Shape[T]) -> Steps[BestPath[T]]:
    with Arena(s, name, where) as arena:
        frontier: list[_Node[T]] = [_Node(s, ())]
        for level in range(shape.depth):
            frontier = yield from _grown(arena, frontier, shape, level)
            last = level == shape.depth - 1
            if last or (shape.keep is not None and len(frontier) > shape.keep):
                found = yield from rates(arena, [node.path for node in frontier], shape.judge, shape.score)
                best = sorted(found, key=lambda index: (-found[index], index))[: 1 if last else shape.keep]
                arena.drop([node.branch for index, node in enumerate(frontier) if index not in best])
                frontier = [frontier[index] for index in best]  # best first: they also win ties below them
        arena.adopt(frontier[0].branch)
        return BestPath(tuple(trial.read() for trial in frontier[0].path), found[best[0]])


def _grown(arena: Arena, frontier: list[_Node[T]], shape: _Shape[T], level: int) -> Steps[list[_Node[T]]]:
    """Record a level below the frontier; nothing is read, except where a step is a coroutine."""
    yield from arena.finish([trial for node in frontier for trial in node.path if not trial.recorded])
    grown: list[_Node[T]] = []
    for node in frontier:
        for branch in arena.fork(node.branch, shape.n):
            grown.append(_Node(branch, (*node.path, arena.begin(branch, "step", shape.step, level))))
    return grown


beam, abeam = blocking(_beam), awaiting(_beam)
tree_search, atree_search = blocking(_tree_search), awaiting(_tree_search)
