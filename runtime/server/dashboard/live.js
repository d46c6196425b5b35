"use strict"
// The stream: read with fetch, since an EventSource could show a key in its address only. A hidden page does not watch.

const stream = { columns: {}, states: [], points: [], last: null, key: "", abort: null, tries: 0, timer: 0 }
const KEEP = 700 // points: somewhat more than is drawn
const SILENCE = 25_000 // ms without a byte after which the connection counts as lost
const WORDS = { connecting: "connecting", live: "live", restarting: "engine restarts", draining: "shutting down", stalled: "engine stalled", lost: "connection lost", key: "key needed" }

const show = (state, more = "") => {
  document.body.dataset.state = state
  say($("status"), WORDS[state] + more)
  $("gate").hidden = state !== "key"
}

const draw = () => {
  const { last } = stream
  if (!last || !last.kv || document.hidden) return
  say($("model"), `${last.model} · context ${whole(last.context)}`)
  drawFigures(stream.points, last)
  drawPrograms(last)
  drawTree(last.tree)
}

const take = (event, data) => {
  if (event === "history") {
    Object.assign(stream, { columns: data.columns, states: data.states })
    stream.points = data.points.map(values => record(data.columns.point, values))
    return
  }
  if (event !== "frame") return
  show(data.state === "ready" ? "live" : data.state)
  if (!data.point) return
  stream.points.push(record(stream.columns.point, data.point))
  if (stream.points.length > KEEP) stream.points.splice(0, stream.points.length - KEEP)
  data.tree.nodes = data.tree.nodes.map(values => record(stream.columns.node, values))
  for (const program of data.programs) program.branches = program.branches.map(values => record(stream.columns.branch, values))
  stream.last = data
  draw()
}

const read = async (body, alive) => {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    alive()
    const blocks = (rest + value).split("\n\n")
    rest = blocks.pop()
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map(row => [row.slice(0, row.indexOf(":")), row.slice(row.indexOf(":") + 2)]))
      if (fields.data) take(fields.event, JSON.parse(fields.data))
    }
  }
}

const watch = async () => {
  clearTimeout(stream.timer)
  if (stream.abort) stream.abort.abort()
  const abort = stream.abort = new AbortController()
  let silence = 0
  const alive = () => {
    clearTimeout(silence)
    silence = setTimeout(() => abort.abort(), SILENCE)
    stream.tries = 0
  }
  try {
    const headers = stream.key ? { Authorization: `Bearer ${stream.key}` } : {}
    const answer = await fetch("dashboard/events", { headers, signal: abort.signal, cache: "no-store", credentials: "omit" })
    if (answer.status === 401) return ask(stream.key ? "This key is not one of the server's." : "")
    if (answer.ok) { alive(); await read(answer.body, alive) }
  } catch (error) {
    if (!(error instanceof TypeError) && error.name !== "AbortError") console.error(error)
  } finally {
    clearTimeout(silence)
  }
  if (stream.abort !== abort) return // another one has taken over, or nobody looks
  const wait = Math.min(8, 2 ** stream.tries++)
  show("lost", `, again in ${wait} s`)
  stream.timer = setTimeout(watch, 1000 * wait)
}

const ask = why => {
  stream.abort = null
  stream.key = ""
  if (why) { say($("gate-why"), why); $("gate-why").className = "bad" }
  show("key")
  $("key").focus()
}

const rest = () => {
  clearTimeout(stream.timer)
  if (stream.abort) { const abort = stream.abort; stream.abort = null; abort.abort() }
}

$("gate").addEventListener("submit", event => {
  event.preventDefault()
  const key = $("key").value.trim()
  $("key").value = ""
  if (!/^[\x21-\x7e]+$/.test(key)) return ask("A key is printable ASCII without spaces.")
  stream.key = key
  show("connecting")
  watch()
})

let hiding = 0
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding)
  if (document.hidden) hiding = setTimeout(rest, 5000)
  else if (document.body.dataset.state !== "key") { draw(); if (!stream.abort) { stream.tries = 0; show("connecting"); watch() } }
})

let resizing = 0
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(draw) })

const root = document.documentElement
const stored = () => { try { return localStorage.getItem("ramet-theme") } catch { return null } }
const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark"
if (["dark", "light"].includes(stored())) root.dataset.theme = stored()
$("theme").addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark"
  try { localStorage.setItem("ramet-theme", root.dataset.theme) } catch { /* private windows forget it */ }
})

watch()
