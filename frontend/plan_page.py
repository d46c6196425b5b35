"""A plan as a web page, and as what a notebook shows.

In: a document, what runs of it have shown, what checking it has found. Out: HTML without scripts that fetches nothing;
every text is escaped. Colours are translucent, so that they suit whatever background the page or the notebook has.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from ramet.frontend.diagnostics import Diagnostic
from ramet.frontend.outline import Item, grouped, named, outlined, title
from ramet.frontend.pictures import summary
from ramet.frontend.planned import Document
from ramet.frontend.walk import Lengths

MOST = 24  # branches or outcomes that are drawn next to each other
DEEP = 50  # decisions and forks that are drawn inside each other
STYLE = """
.ramet-plan{font:14px/1.5 system-ui,sans-serif;color:inherit;max-width:72rem}
.ramet-plan h1{font-size:1.15rem;margin:0 0 .1rem;font-weight:650}.ramet-plan p{margin:.1rem 0 .7rem;opacity:.75}
.ramet-plan .i{margin:.3rem 0;padding:.3rem .65rem;border-left:3px solid rgba(128,138,150,.55);
background:rgba(128,138,150,.1);border-radius:0 6px 6px 0;white-space:pre-wrap;overflow-wrap:anywhere}
.ramet-plan .i>b{font-size:11px;letter-spacing:.04em;text-transform:uppercase;opacity:.7;margin-right:.6em}
.ramet-plan .i>small{opacity:.65;margin-left:.6em;white-space:nowrap}
.ramet-plan .user{border-color:rgba(64,132,214,.9);background:rgba(64,132,214,.12)}
.ramet-plan .gen,.ramet-plan .select{border-color:rgba(46,160,90,.95);background:rgba(46,160,90,.15)}
.ramet-plan .return{border-color:rgba(132,96,204,.9);background:rgba(132,96,204,.13)}
.ramet-plan .break{border-color:rgba(210,80,60,.9);background:rgba(210,80,60,.13)}
.ramet-plan .fork,.ramet-plan .decision,.ramet-plan .join{border-color:rgba(200,150,10,.9);background:none}
.ramet-plan code{font:12.5px/1.45 ui-monospace,monospace;background:rgba(128,138,150,.16);padding:.05em .3em;
border-radius:4px}
.ramet-plan .row{display:flex;flex-wrap:wrap;gap:.6rem;margin:.3rem 0 .5rem .9rem;align-items:flex-start}
.ramet-plan details{flex:1 1 15rem;min-width:0;border:1px solid rgba(128,138,150,.4);border-radius:8px;
padding:.2rem .65rem .35rem}
.ramet-plan summary{cursor:pointer;font-weight:600;font-size:13px;overflow-wrap:anywhere}
.ramet-plan h2{font-size:.95rem;margin:1.1rem 0 .3rem}.ramet-plan ul{list-style:none;margin:0;padding:0}
.ramet-plan li{margin:.3rem 0;overflow-wrap:anywhere}.ramet-plan li>small{display:block;opacity:.7;margin-left:.2rem}
.ramet-plan .tag{font-size:11px;font-weight:650;border-radius:9px;padding:.1em .6em;margin-right:.5em;color:inherit}
.ramet-plan .error{background:rgba(210,60,50,.3)}.ramet-plan .warning{background:rgba(220,160,20,.32)}
.ramet-plan .note{background:rgba(128,138,150,.25)}
"""
_PAGE = "body{margin:1.6rem;color:#1f2328;background:#fff}\n" + (
    "@media(prefers-color-scheme:dark){:root{color-scheme:dark}body{color:#e6edf3;background:#0d1117}}"
)


def page(document: Document, lengths: Lengths, found: Sequence[Diagnostic]) -> str:
    """A whole page."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title(document))}</title><style>{_PAGE}</style></head>\n"
        f"<body>{fragment(document, lengths, found)}</body></html>\n"
    )


def fragment(document: Document, lengths: Lengths, found: Sequence[Diagnostic]) -> str:
    """What stands inside another page."""
    where = f", {document.where}" if document.where else ""
    static = "".join(f" <code>{html.escape(f'{k}={v}')}</code>" for k, v in document.static.items())
    return (
        f"<div class='ramet-plan'><style>{STYLE}</style><h1>{html.escape(title(document))}</h1>"
        f"<p>{html.escape(summary(document) + where)}{static}</p>"
        f"{_items(outlined(document, lengths))}{_findings(found)}</div>"
    )


def _items(items: Sequence[Item], depth: int = 0) -> str:
    if depth > DEEP:
        return "<p>and so on: a page goes no deeper, the plan's show() does</p>"
    return "".join(_group(group, depth) for group in grouped(items))


def _group(group: Sequence[Item], depth: int) -> str:
    item = group[0]
    if item.kind in ("branch", "outcome"):
        label = named(group) if item.kind == "branch" else item.label
        return f"<details open><summary>{html.escape(label)}</summary>{_items(item.inside, depth + 1)}</details>"
    return _item(item) + (_row(item.inside, depth) if item.inside else "")


def _row(items: Sequence[Item], depth: int) -> str:
    """Branches or outcomes, side by side."""
    groups = grouped(items)
    more = f"<details><summary>{len(groups) - MOST} more</summary>" if len(groups) > MOST else ""
    shown = "".join(_group(group, depth) for group in groups[:MOST])
    rest = f"{more}{''.join(_group(group, depth) for group in groups[MOST:])}</details>" if more else ""
    return f"<div class='row'>{shown}{rest}</div>"


def _item(item: Item) -> str:
    head = item.role if item.role and item.kind == "text" else f"{item.role}: {item.label}" if item.role else item.label
    kind = "user" if item.role == "user" and item.kind == "text" else item.kind
    text = f"<code>{html.escape(item.text)}</code>" if item.kind in ("gen", "select") else html.escape(item.text)
    tokens = f"<small>{html.escape(item.tokens)}</small>" if item.tokens else ""
    body = text if item.text else ""
    return f"<div class='i {kind}' title='{html.escape(item.where)}'><b>{html.escape(head)}</b>{body}{tokens}</div>"


def _findings(found: Sequence[Diagnostic]) -> str:
    if not found:
        return "<h2>Nothing found by check()</h2>"
    return f"<h2>Found by check()</h2><ul>{''.join(map(_finding, found))}</ul>"


def _finding(each: Diagnostic) -> str:
    when = f" (when {each.when})" if each.when else ""
    return (
        f"<li><span class='tag {each.severity}'>{each.severity}</span><code>{html.escape(each.where)}</code> "
        f"{html.escape(each.message + when)}<small>{html.escape(f'{each.remedy} ({each.code})')}</small></li>"
    )
