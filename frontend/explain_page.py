"""An explanation as a web page: totals, timeline, prefix tree, and the operations as a table.

In: an `Explanation`. Out: one self-contained HTML page: nothing is fetched, a policy in it forbids that, the one script
is allowed by its digest, and every text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence

from ramet.frontend.explain_charts import icicle, timeline, tip_of, title_of
from ramet.frontend.explain_text import Names, count, facts, names_of, seconds, waited
from ramet.frontend.explain_tree import Row, tree
from ramet.frontend.explained import Explanation, Op

CALLS = ("gen", "select", "score")
START = 48  # characters of a call's text in the table
ROWS = 64  # branches of a fork in the table, at most
STYLE = """
:root{color-scheme:light dark;--fg:#1f2328;--dim:#59636e;--bg:#fff;--soft:#f6f8fa;--line:#d8dee4;--mark:#bf2c8b;
--queue:#d9a02b;--memory:#c83d3d;--prefill:#3f78c5;--decode:#2f9461;--busy:#3d98a8;--host:#8a63c4;--wait:#c9d1d9;
--python:#e58a4e;--send:#a3acb5;--text:#b4c6dc;--select:#d9a02b;--join:#c3b4e6}
@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--dim:#9198a1;--bg:#0d1117;--soft:#161b22;--line:#30363d;
--mark:#ff7bc8;--queue:#c9952c;--memory:#e5534b;--prefill:#4c8ee8;--decode:#3fb078;--busy:#46aebf;--host:#a07be0;
--wait:#3d444d;--python:#d9793a;--send:#5b646e;--text:#3d5470;--select:#c9952c;--join:#5d4f80}}
*{box-sizing:border-box}
body{font:14px/1.5 system-ui,sans-serif;margin:0 auto;padding:1.5rem 2rem 3rem;max-width:1500px;color:var(--fg);
background:var(--bg)}
h1{font-size:1.35rem;margin:0 0 .2rem}h1 small{font-weight:400;color:var(--dim)}h2{font-size:1rem;margin:1.8rem 0 .5rem}
p{margin:.3rem 0;color:var(--dim);overflow-wrap:anywhere}.trouble{color:var(--memory)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:.8rem 0}dt{color:var(--dim)}dd{margin:0}
.tools{display:flex;flex-wrap:wrap;gap:.4rem .9rem;align-items:center;margin:.3rem 0 .5rem;color:var(--dim);
font-size:12px}
button{font:inherit;color:var(--fg);background:var(--soft);border:1px solid var(--line);border-radius:6px;
padding:.1rem .6rem;cursor:pointer}
.legend{display:flex;flex-wrap:wrap;gap:.2rem .9rem}.legend span{display:flex;align-items:center;gap:.35rem}
.legend .bar{position:static;width:14px;height:10px}
.lanes{display:flex;border:1px solid var(--line);border-radius:8px;overflow:hidden}
.names{flex:0 0 11rem;background:var(--soft);border-right:1px solid var(--line);font-size:12px}
.name{height:22px;line-height:22px;padding:0 .5em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.scroll{flex:1;overflow-x:auto;min-width:0}.time{position:relative;min-width:100%;overflow:hidden}
.axis{height:22px;position:relative;overflow:hidden;font-size:11px;color:var(--dim)}
.axis b{position:absolute;top:3px;padding-left:3px;font-weight:400;white-space:nowrap}
.time u{position:absolute;top:0;bottom:0;border-left:1px solid var(--line)}
.lane{position:relative;height:22px}
.bar{position:absolute;top:4px;bottom:4px;min-width:1px;border-radius:2px;background:var(--c)}
.queue{--c:var(--queue)}.memory{--c:var(--memory)}.prefill{--c:var(--prefill)}.decode{--c:var(--decode)}
.busy{--c:var(--busy)}.host{--c:var(--host)}.python{--c:var(--python)}.send{--c:var(--send)}
.text{--c:var(--text)}.gen{--c:var(--decode)}.select{--c:var(--select)}.join{--c:var(--join)}
.wait{--c:repeating-linear-gradient(135deg,var(--wait) 0 2px,transparent 2px 6px)}
.lane .wait,.lane .python,.lane .send{top:8px;bottom:8px}
.mark{box-shadow:0 3px 0 var(--mark)}.legend .mark{height:3px;box-shadow:none;--c:var(--mark)}
.lit{outline:2px solid var(--fg);z-index:2}
.icicle{position:relative;overflow:hidden}.icicle .bar{bottom:auto;border:1px solid var(--bg)}
.icicle em{position:absolute;font-style:normal;font-size:11px;line-height:18px;padding-left:5px;color:var(--dim);
white-space:nowrap}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{text-align:right;white-space:nowrap;color:var(--dim);font-weight:500;padding:.15rem .5rem;
border-bottom:1px solid var(--line)}
td{text-align:right;padding:.1rem .5rem;white-space:nowrap}tr:hover{background:var(--soft)}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;
border-left:3px solid transparent}
tr.path td:first-child{border-left-color:var(--mark)}.quiet,.branch{color:var(--dim)}.failed{color:var(--memory)}
.note td{color:var(--dim);font-size:12px;padding-top:0}
"""
SCRIPT = """
"use strict";
const time = document.querySelector(".time"), scroll = document.querySelector(".scroll");
let zoom = 1;
function stretch(factor, x) {
  const old = zoom, at = (scroll.scrollLeft + x) / old;
  zoom = factor ? Math.min(400, Math.max(1, zoom * factor)) : 1;
  time.style.width = 100 * zoom + "%";
  scroll.scrollLeft = at * zoom - x;
}
if (time) {
  for (const button of document.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => stretch(Number(button.dataset.zoom), scroll.clientWidth / 2));
  scroll.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    stretch(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - scroll.getBoundingClientRect().left);
  }, {passive: false});
}
const all = new Map();
for (const one of document.querySelectorAll("[data-op]")) {
  if (!all.has(one.dataset.op)) all.set(one.dataset.op, []);
  all.get(one.dataset.op).push(one);
}
function light(event, on) {
  const one = event.target.closest("[data-op]");
  for (const other of one ? all.get(one.dataset.op) : []) other.classList.toggle("lit", on && other.tagName === "I");
}
document.addEventListener("mouseover", event => light(event, true));
document.addEventListener("mouseout", event => light(event, false));
"""


def page(shown: Explanation) -> str:
    """The page."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    allowed = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    name = html.escape(f"{shown.name}: {shown.state}")
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<meta name='viewport' content='width=device-width,initial-scale=1'><title>{name}</title>"
        f"<style>{STYLE}</style></head>\n<body>{_heading(shown)}{timeline(shown)}{icicle(shown)}"
        f"<section><h2>Operations</h2><div class='wide'>{_table(shown)}</div></section>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _heading(shown: Explanation) -> str:
    took = f" in {seconds(shown.totals.seconds)}" if shown.state == "done" else ""
    more = [shown.model] if shown.model else []
    more += [f"seed {shown.seed}"] if shown.seed is not None else []
    small = html.escape(" · ".join([f"{shown.state}{took}", *more]))
    error = f"<p class='trouble'>{html.escape(shown.error)}</p>" if shown.error else ""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in shown.notes)
    known = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>" for name, said in facts(shown))
    return f"<h1>{html.escape(shown.name)} <small>{small}</small></h1>{error}{notes}<dl>{known}</dl>"


# --- the table ---


def _table(shown: Explanation) -> str:
    names = ["prompt", "shared", "generated", "steps"]
    if shown.state != "planned":
        names = ["prompt", "cached", "generated", "forced", "computed", "steps", "queue", "first token", "time"]
        if any(op.guess is not None for op in shown.ops):
            names.insert(3, "expected")
    head = "".join(f"<th>{name}</th>" for name in ["operation", *names])
    known = names_of(shown)
    body = "".join(_row(row, depth, known, names) for row, depth in _walk(tree(shown, ROWS), 0))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _walk(rows: Sequence[Row], depth: int) -> Iterator[tuple[Row, int]]:
    for row in rows:
        yield row, depth
        yield from _walk(row.children, depth + 1)


def _row(row: Row, depth: int, known: Names, names: Sequence[str]) -> str:
    pad = f"style='padding-left:{0.5 + 1.4 * depth:.1f}em'"
    path = " path" if row.critical else ""
    if row.op is None:
        said, kind = _quiet(row)
        return f"<tr class='{kind}{path}'><td {pad} colspan='{len(names) + 1}'>{html.escape(said)}</td></tr>"
    op = row.op
    cells = _cells(op)
    figures = "".join(f"<td>{html.escape(cells.get(name, ''))}</td>" for name in names)
    failed = " failed" if op.status == "failed" else ""
    tip = html.escape("\n".join(tip_of(op)), quote=True)
    state = f" ({op.status})" if op.status in ("recorded", "running", "failed") and op.kind != "fork" else ""
    text = f" <span class='quiet'>{html.escape(_start(op))}</span>" if op.kind in CALLS else ""
    line = (
        f"<tr class='op{path}{failed}' data-op='{html.escape(op.id, quote=True)}' title='{tip}'>"
        f"<td {pad}>{html.escape(op.label + state)}{text}</td>{figures}</tr>"
    )
    notes = "; ".join(_notes(op, known))
    pad = f"style='padding-left:{2 + 1.4 * depth:.1f}em'"
    return line + (
        f"<tr class='note'><td {pad} colspan='{len(names) + 1}'>{html.escape(notes)}</td></tr>" if notes else ""
    )


def _quiet(row: Row) -> tuple[str, str]:
    if row.branch is not None:
        return f"branch {title_of(row.branch)}", "branch"
    if row.more:
        return f"{row.more} more branches", "quiet"
    return row.text[:160], "quiet"


def _start(op: Op) -> str:
    text = " ".join(op.text.split())
    return text if len(text) <= START else f"{text[: START - 1]}…"


def _cells(op: Op) -> dict[str, str]:
    if op.kind == "put":
        return {"time": seconds(op.seconds)}
    if op.kind not in CALLS:
        return {}
    guess = op.guess
    if op.status == "planned" and guess is not None:
        return {
            "prompt": f"{guess.prompt:.0f}",
            "shared": f"{guess.shared:.0f}",
            "generated": f"{guess.generated:.0f}",
            "steps": f"{guess.begin:.0f}..{guess.end:.0f}",
        }
    return {
        "prompt": count(op.prompt),
        "cached": count(op.cached),
        "generated": count(op.generated),
        "expected": f"{guess.generated:.0f}" if guess is not None else "",
        "forced": count(op.forced),
        "computed": count(op.computed),
        "steps": f"{op.first_step}..{op.last_step}" if op.first_step is not None else "?",
        "queue": seconds(op.queued),
        "first token": seconds(op.first_token),
        "time": seconds(op.seconds),
    }


def _notes(op: Op, known: Names) -> Iterator[str]:
    if op.error:
        yield f"failed: {op.error}"
    if op.recomputed or op.retractions:
        yield f"{count(op.recomputed)} tokens computed again, after {count(op.retractions)} retractions"
    if op.memory:
        yield f"{seconds(op.memory)} without KV memory"
    for segment in waited(op) if op.kind != "put" else ():
        on = f"for {known.get(segment.on, segment.on)}" if segment.on else "for Python"
        yield f"waited {seconds(segment.seconds)} {on}"
