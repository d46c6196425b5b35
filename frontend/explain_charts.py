"""The pictures of an explanation: a timeline with one lane per branch, and the prefix tree.

In: an `Explanation`. Out: HTML in which every text is escaped; positions are in percent, so that the page can stretch.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ramet.frontend.explain_text import Names, count, cut, names_of, seconds
from ramet.frontend.explained import Branch, Explanation, Op, Segment

LANES = 200  # of the timeline, at most
ROWS = 300  # of the prefix tree, at most
ROW = 20  # pixels of a row of the prefix tree
HOSTS = 6  # lanes of host calls that run at a time on one branch
MEANING = {
    "queue": "in the engine, behind others",
    "memory": "in the engine, for want of KV memory",
    "prefill": "until the first token; of a choice, until it was scored",
    "decode": "the tokens after the first",
    "busy": "in a backend that does not tell more",
    "host": "a function of the program",
    "wait": "for another operation",
    "python": "until Python recorded it",
    "send": "on the way to the engine, until its step loop took it in",
}
KINDS = {"text": "text of the program", "gen": "generated", "select": "chosen", "join": "joined"}


@dataclass(frozen=True)
class _Lane:
    name: str
    depth: int
    bars: Sequence[tuple[Segment, Op | None]]


# --- the timeline ---


def timeline(shown: Explanation) -> str:
    """Lanes over time, with an axis."""
    end = max([shown.totals.seconds or 0.0, *(s.end for op in shown.ops for s in op.segments)])
    lanes = list(_lanes(shown))
    if end <= 0 or not lanes:
        return ""
    names = names_of(shown)
    rows = "".join(_lane(lane, end, names) for lane in lanes[:LANES])
    more = f"<p>{len(lanes) - LANES} more lanes are not drawn.</p>" if len(lanes) > LANES else ""
    seen = {s.phase for lane in lanes for s, _ in lane.bars}
    legend = "".join(
        f"<span title='{html.escape(said, quote=True)}'><i class='bar {phase}'></i>{phase}</span>"
        for phase, said in MEANING.items()
        if phase in seen
    )
    titles = "".join(
        f"<div class='name' style='padding-left:{0.4 + 0.8 * lane.depth:.1f}em'>{html.escape(lane.name)}</div>"
        for lane in lanes[:LANES]
    )
    ticks = "".join(f"<b style='left:{100 * at / end:.3f}%'>{html.escape(seconds(at))}</b>" for at in _ticks(end))
    grid = "".join(f"<u style='left:{100 * at / end:.3f}%'></u>" for at in _ticks(end))
    return (
        "<section><h2>Timeline</h2><div class='tools'><button type='button' data-zoom='0.5'>&minus;</button>"
        "<button type='button' data-zoom='0'>fit</button><button type='button' data-zoom='2'>+</button>"
        f"<span class='legend'>{legend}<span><i class='bar mark'></i>critical path</span></span></div>"
        f"<div class='lanes'><div class='names'><div class='name'></div>{titles}</div><div class='scroll' tabindex='0'>"
        f"<div class='time'><div class='axis'>{ticks}</div>{grid}{rows}</div></div></div>{more}</section>"
    )


def _lanes(shown: Explanation) -> Iterator[_Lane]:
    if shown.python:
        yield _Lane("Python", 0, [(segment, None) for segment in shown.python])
    depths: dict[str, int] = {}
    found: dict[str, list[Op]] = {}
    for op in shown.ops:
        found.setdefault(op.seq, []).append(op)
    for branch in _in_order(shown.branches):
        depth = depths[branch.seq] = depths.get(branch.parent, -1) + 1
        mine = found.get(branch.seq, [])
        bars = [(s, op) for op in mine if op.kind != "put" for s in op.segments]
        yield _Lane(title_of(branch), depth, bars)
        for packed in _packed([op for op in mine if op.kind == "put"]):
            names = ", ".join(dict.fromkeys(op.var or op.label for op in packed))
            bars = [(s, op) for op in packed for s in op.segments if s.phase == "host"]
            yield _Lane(f"host: {names}", depth + 1, bars)


def _in_order(branches: Sequence[Branch]) -> Iterator[Branch]:
    """Each behind its parent, and before what came later."""
    children: dict[str, list[Branch]] = {}
    for branch in branches:
        children.setdefault(branch.parent, []).append(branch)
    stack = list(reversed(children.get("", [])))
    while stack:
        branch = stack.pop()
        yield branch
        stack.extend(reversed(children.get(branch.seq, [])))


def _packed(calls: Sequence[Op]) -> list[list[Op]]:
    """Host calls in as few lanes as their overlaps allow."""
    lanes: list[tuple[float, list[Op]]] = []
    for op in calls:
        segment = next((s for s in op.segments if s.phase == "host"), None)
        if segment is None:
            continue
        place = next((i for i, (busy, _) in enumerate(lanes) if busy <= segment.begin), len(lanes))
        if place == len(lanes):
            lanes.append((0.0, []))
        lanes[place] = (segment.end, [*lanes[place][1], op])
    return [ops for _, ops in lanes[:HOSTS]]


def title_of(branch: Branch) -> str:
    """A branch's name on the page."""
    if not branch.parent:
        return "main"
    name, title = branch.seq.rpartition(".")[2], " ".join(branch.title.split())
    if title.isdecimal():  # counted branches: their place says the same, mostly
        return name if name == f"b{title}" else f"{name} ({title})"
    return cut(title, 28) or name


def _lane(lane: _Lane, end: float, names: Names) -> str:
    return f"<div class='lane'>{''.join(_bar(segment, op, end, names) for segment, op in lane.bars)}</div>"


def _bar(segment: Segment, op: Op | None, end: float, names: Names) -> str:
    left, width = 100 * segment.begin / end, 100 * segment.seconds / end
    works = segment.phase not in ("wait", "python", "send")
    mark = " mark" if op is not None and op.critical and works else ""
    data = f" data-op='{html.escape(op.id, quote=True)}'" if op is not None else ""
    tip = html.escape(_tip(segment, op, names), quote=True)
    return f"<i class='bar {segment.phase}{mark}' style='left:{left:.3f}%;width:{width:.3f}%'{data} title='{tip}'></i>"


def _tip(segment: Segment, op: Op | None, names: Names) -> str:
    on = f" for {names.get(segment.on, segment.on)}" if segment.on else ""
    lines = [f"{segment.phase}{on}: {seconds(segment.seconds)}, from {seconds(segment.begin)}"]
    return "\n".join([*lines, *(tip_of(op) if op is not None else [])])


def tip_of(op: Op) -> list[str]:
    """What an operation is and cost, in lines."""
    lines = [f"{op.label}  ({op.id})  {op.where}".rstrip()]
    if op.kind in ("gen", "select", "score"):
        steps = f", steps {op.first_step}..{op.last_step}" if op.first_step is not None else ""
        lines.append(f"prompt {count(op.prompt)}, cached {count(op.cached)}, generated {count(op.generated)}")
        lines.append(f"forced {count(op.forced)}, computed {count(op.computed)}{steps}")
    if op.text:
        lines.append(cut(" ".join(op.text.split()), 80))
    if op.error:
        lines.append(f"failed: {cut(op.error, 120)}")
    return lines


def _ticks(end: float) -> list[float]:
    """About eight round numbers from 0 on."""
    rough = end / 8
    power = 1e-6
    while power * 10 <= rough:
        power *= 10
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * index for index in range(int(end * 0.94 / step) + 1)]  # a label further right would be cut off


# --- the prefix tree ---


def icicle(shown: Explanation) -> str:
    """Branches over their text: a block is as high as the number of branches that have it in common."""
    longest = max((branch.length or 0.0 for branch in shown.branches), default=0.0)
    if longest <= 0:
        return ""
    children: dict[str, list[Branch]] = {}
    for branch in shown.branches:
        children.setdefault(branch.parent, []).append(branch)
    roots = children.get("", [])
    blocks: list[str] = []
    row = 0
    known = {op.id: op for op in shown.ops}
    for root in roots:
        row = _stacked(root, row, children, longest, known, blocks)
    note = f"<p>{row - ROWS} more branches are not drawn.</p>" if row > ROWS else ""
    kinds = "".join(
        f"<span><i class='bar {kind}'></i>{said}</span>"
        for kind, said in (
            ("text", "text of the program"),
            ("gen", "generated"),
            ("select", "chosen"),
            ("join", "joined"),
        )
        if any(piece[3] == kind for branch in shown.branches for piece in branch.pieces)
    )
    height = min(row, ROWS) * ROW
    return (
        f"<section><h2>Prefix tree</h2><div class='tools'><span class='legend'>{kinds}</span><span>{longest:g} "
        f"{shown.unit} across; a block is as high as the branches that share it</span></div>"
        f"<div class='icicle' style='height:{height}px'>{''.join(blocks)}</div>{note}</section>"
    )


def _stacked(
    branch: Branch,
    row: int,
    children: dict[str, list[Branch]],
    longest: float,
    known: dict[str, Op],
    blocks: list[str],
) -> int:
    """Draw a branch at `row`, what was forked from it below, the latest fork first; the next free row. Blocks of the
    branch reach over all rows below it whose branches have them too."""
    top, row = row, row + 1
    reach: list[tuple[float, int]] = []  # fork point, rows until there
    for child in sorted(children.get(branch.seq, []), key=lambda child: -(child.shared or 0.0)):
        row = _stacked(child, row, children, longest, known, blocks)
        reach.append((child.shared or 0.0, row))
    if top < ROWS:
        cuts = sorted({point for point, _ in reach})
        for begin, end, op, kind in branch.pieces:
            inner = [point for point in cuts if begin < point < end]
            for low, high in zip([begin, *inner], [*inner, end], strict=True):
                bottom = max([top + 1, *(until for point, until in reach if point >= high)])
                blocks.append(_block(low, high, kind, (top, min(bottom, ROWS)), longest, known.get(op)))
        blocks.append(_name(branch, top, longest))
    return row


def _block(begin: float, end: float, kind: str, rows: tuple[int, int], longest: float, op: Op | None) -> str:
    top, bottom = rows
    shared = f", shared by {bottom - top} branches" if bottom - top > 1 else ""
    tip = [f"{end - begin:g} of {kind}, from {begin:g}{shared}"]
    if op is not None:
        before = "before " if kind == "text" and op.kind != "text" else ""
        about = tip_of(op)
        tip += [before + about[0]] if before else about
    data = f" data-op='{html.escape(op.id, quote=True)}'" if op is not None else ""
    left, width, height = 88 * begin / longest, 88 * (end - begin) / longest, (bottom - top) * ROW - 2
    place = f"left:{left:.3f}%;width:{width:.3f}%;top:{top * ROW}px;height:{height}px"
    shown = html.escape("\n".join(tip), quote=True)
    return f"<i class='bar {kind}' style='{place}'{data} title='{shown}'></i>"


def _name(branch: Branch, top: int, longest: float) -> str:
    left = 88 * (branch.length or 0.0) / longest
    return f"<em style='left:{left:.3f}%;top:{top * ROW}px'>{html.escape(title_of(branch))}</em>"
