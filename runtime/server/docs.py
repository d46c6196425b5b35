"""The page at `/docs`: every route, its fields and examples, drawn in the browser from `/openapi.json`.

In: nothing. Out: one page that loads nothing from anywhere else, so that it works without a network and tells nobody.
"""

from __future__ import annotations

from fastapi import Request, Response

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


async def page(request: Request) -> Response:
    """The page."""
    return Response(_PAGE, headers=_HEADERS, media_type="text/html")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ramet: HTTP interface</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
details { border: 1px solid #ddd; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem }
summary { cursor: pointer } code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: #f6f6f6; padding: .6rem; overflow: auto; border-radius: 4px }
b.method { display: inline-block; width: 4rem; color: #065 } .what { color: #666 } table { border-collapse: collapse }
td { border-top: 1px solid #eee; padding: .15rem 1rem .15rem 0; vertical-align: top }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } pre { background: #1c1c1c }
  details { border-color: #333 } td { border-color: #2a2a2a } b.method { color: #6c9 } }
</style></head><body>
<h1>ramet</h1><p id="about"></p><p><a href="openapi.json">openapi.json</a></p><main id="routes"></main>
<script>
const make = (tag, text, kind) => {
  const node = document.createElement(tag)
  if (text !== undefined) node.textContent = text
  if (kind) node.className = kind
  return node
}
const deref = (all, s) => s && s.$ref ? all.components.schemas[s.$ref.split("/").pop()] : s
const kind = (all, s) => {
  if (!s) return "any"
  if (s.$ref) return s.$ref.split("/").pop()
  const many = s.anyOf || s.oneOf
  if (many) return many.map(x => kind(all, x)).join(" or ")
  if (s.enum) return s.enum.map(x => JSON.stringify(x)).join(" or ")
  if (s.const !== undefined) return JSON.stringify(s.const)
  return s.type === "array" ? "[" + kind(all, s.items) + "]" : s.type || "any"
}
const fields = (all, schema) => {
  const table = make("table")
  for (const [name, s] of Object.entries(schema.properties || {})) {
    const row = table.insertRow()
    row.insertCell().append(make("code", name + ((schema.required || []).includes(name) ? " *" : "")))
    row.insertCell().append(make("code", kind(all, s)))
    row.insertCell().textContent = [s.description, "default" in s ? "default " + JSON.stringify(s.default) : ""]
      .filter(Boolean).join("; ")
  }
  return table
}
const examples = (schema, media) => [...(schema.examples || []), ...("example" in media ? [media.example] : []),
  ...Object.values(media.examples || {}).map(e => e.value)]
const curl = (method, path, body) => "curl " + (method === "GET" ? "" : "-X " + method + " ") + location.origin + path
  + (body === undefined ? "" : " -H 'Content-Type: application/json' -d '"
    + JSON.stringify(body, null, 1).replaceAll("'", "'\\\\''") + "'")
fetch("openapi.json").then(r => r.json()).then(all => {
  document.getElementById("about").textContent = all.info.description + " Version " + all.info.version + "."
  for (const [path, methods] of Object.entries(all.paths)) for (const [name, op] of Object.entries(methods)) {
    const box = make("details"), head = make("summary"), method = name.toUpperCase()
    head.append(make("b", method, "method"), make("code", path), make("span", "  " + (op.summary || ""), "what"))
    box.append(head, make("p", op.description || ""))
    for (const p of op.parameters || []) box.append(make("p", p.in + " " + p.name + ": " + kind(all, p.schema)))
    const media = ((op.requestBody || {}).content || {})["application/json"]
    const schema = media && deref(all, media.schema)
    if (schema) box.append(fields(all, schema))
    const bodies = schema ? examples(schema, media) : []
    for (const body of bodies.length ? bodies : [undefined]) box.append(make("pre", curl(method, path, body)))
    document.getElementById("routes").append(box)
  }
  const named = make("h2", "Objects")
  document.body.append(named)
  for (const [name, schema] of Object.entries(all.components.schemas)) {
    const box = make("details")
    box.append(make("summary", name), make("p", schema.description || ""), fields(all, schema))
    document.body.append(box)
  }
})
</script></body></html>
"""
