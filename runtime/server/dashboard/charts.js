"use strict"
// What changes over time: points of counters in, paths out. A gap of the stream is a gap in the line.

const SHOWN = 180 // seconds
const SMOOTH = 1.8 // seconds that a rate is measured over
const GAP = 12 // seconds without a point that break a line

const svg = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value)
  if (text !== undefined) node.textContent = text
  return node
}

// [time, how fast `of` grows per unit of `per`] at each point; null where that cannot be said.
const rates = (points, of, per = point => point.time) => {
  const found = []
  let back = 0
  points.forEach((point, place) => {
    if (place && (point.time - points[place - 1].time > GAP || of(point) < of(points[place - 1]))) back = place
    while (back + 1 < place && point.time - points[back + 1].time >= SMOOTH) back++
    const units = per(point) - per(points[back])
    found.push([point.time, place > back && units > 0 ? (of(point) - of(points[back])) / units : null])
  })
  return found
}

const values = (points, of) => points.map(point => [point.time, of(point)])

// Runs of a series without a gap.
const pieces = series => {
  const runs = []
  let last = -Infinity
  for (const [time, value] of series) {
    if (value === null) { last = -Infinity; continue }
    if (time - last > GAP) runs.push([])
    runs.at(-1).push([time, value])
    last = time
  }
  return runs
}

const line = (run, x, y) => run.map(([time, value], n) => `${n ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`).join("")

const trace = (series, x, y, floor, kind) => pieces(series).flatMap(run => {
  const path = line(run, x, y)
  const [left, right] = [x(run[0][0]).toFixed(1), x(run.at(-1)[0]).toFixed(1)]
  return [svg("path", { class: `area ${kind}`, d: `${path}L${right} ${floor}L${left} ${floor}Z` }),
    svg("path", { class: `line ${kind}`, d: path })]
})

const frame = node => {
  const box = node.getBoundingClientRect()
  return [Math.max(box.width, 40), Math.max(box.height, 16)]
}

const highest = all => Math.max(0, ...all.flatMap(series => series.map(([, value]) => value ?? 0)))

const marks = (width, height, left, now) => [180, 120, 60, 0].map(ago => {
  const place = left + (width - left) * (1 - ago / SHOWN)
  const anchor = ago === 0 ? "end" : ago === SHOWN ? "start" : "middle"
  return svg("text", { x: place, y: height - 1, "text-anchor": anchor }, ago ? `−${ago / 60} min` : "now")
})

// Panels below each other with one axis of time: [[series, class], ...], each with a scale of its own.
const drawPanels = (node, now, panels) => {
  const [width, height] = frame(node)
  const left = 38, base = height - 16, gap = 10
  const each = (base - gap * (panels.length - 1)) / panels.length
  const x = time => left + (width - left) * (1 - (now - time) / SHOWN)
  const parts = marks(width, height, left, now)
  panels.forEach(([series, kind], n) => {
    const top = n * (each + gap) + 5, floor = n * (each + gap) + each
    const most = ceiling(Math.max(highest([series]), 4))
    const y = value => floor - (floor - top) * value / most
    for (const tick of [0, most / 2, most]) {
      parts.push(svg("line", { x1: left, x2: width, y1: y(tick), y2: y(tick) }))
      if (tick !== most / 2) parts.push(svg("text", { x: left - 6, y: y(tick) + 3.5, "text-anchor": "end" }, short(tick)))
    }
    parts.push(...trace(series, x, y, floor, kind))
  })
  node.replaceChildren(...parts)
}

// Layers on top of each other, the whole of which is `most`.
const drawStack = (node, now, most, layers) => {
  const [width, height] = frame(node)
  const base = height - 16
  const x = time => width * (1 - (now - time) / SHOWN)
  const y = value => base - (base - 4) * value / Math.max(most, 1)
  const parts = [svg("rect", { x: 0, y: 4, width, height: base - 4, rx: 4, fill: "var(--free)" })]
  const group = svg("g", { class: "stack" })
  for (const [series, kind] of [...layers].reverse()) group.append(...trace(series, x, y, base, kind).filter(path => path.classList.contains("area")))
  node.replaceChildren(...parts, group, ...marks(width, height, 0, now))
}

const drawSpark = (node, now, series, least = 0) => {
  const [width, height] = frame(node)
  const most = Math.max(highest([series]), least) || 1
  node.replaceChildren(...trace(series, time => width * (1 - (now - time) / SHOWN), value => height - 1 - (height - 4) * value / most, height, ""))
}

const latest = series => series.length ? series.at(-1)[1] : null

// All that is drawn from points. `frame` is the last one of the stream.
const drawFigures = (points, last) => {
  const now = points.length ? points.at(-1).time : last.time
  const decode = rates(points, point => point.generated)
  const computed = rates(points, point => point.computed)
  const prompt = computed.map(([time, value], n) => [time, value === null ? null : Math.max(0, value - (decode[n][1] ?? 0))])
  const step = rates(points, point => point.step_seconds * 1000, point => point.steps)
  const hits = values(points, point => point.prompt ? 100 * point.cached / point.prompt : null)
  const queue = values(points, point => point.queue)
  drawPanels($("pace"), now, [[decode, "decode"], [prompt, "prompt"]])
  drawStack($("kv"), now, last.kv.total, [[values(points, point => point.used), "used"], [values(points, point => point.used + point.kept), "cached"]])
  drawSpark($("spark-running"), now, values(points, point => point.running), 4)
  drawSpark($("spark-queue"), now, queue, 4)
  drawSpark($("spark-hits"), now, hits, 100)
  drawSpark($("spark-step"), now, step)
  say($("decode"), pace(latest(decode) ?? 0))
  say($("prompt"), pace(latest(prompt) ?? 0))
  $("pace").setAttribute("aria-label", `${pace(latest(decode) ?? 0)} tokens per second decoded, ${pace(latest(prompt) ?? 0)} of prompts computed`)
  say($("kv-total"), `${whole(last.kv.total)} tokens`)
  for (const part of ["used", "cached", "free"]) say($(`kv-${part}`), short(last.kv[part]))
  $("kv").setAttribute("aria-label", `KV memory: ${whole(last.kv.used)} tokens in use, ${whole(last.kv.cached)} cached, ${whole(last.kv.free)} free`)
  say($("running"), whole(last.running))
  say($("running-note"), `in ${many(last.live, "program")}`)
  say($("queue"), whole(last.waiting + last.queued))
  say($("queue-note"), last.queued ? `${whole(last.queued)} at the gate` : "waiting")
  say($("hits"), latest(hits) === null ? "–" : `${latest(hits).toFixed(0)}%`)
  const restarts = last.restarts ? `, ${many(last.restarts, "engine restart")}` : ""
  say($("wear"), `${many(last.evicted, "token")} evicted, ${many(last.retractions, "retraction")}${restarts} since the start`)
  const steps = step.filter(([, value]) => value !== null)
  say($("step"), steps.length ? (latest(steps) >= 100 ? latest(steps).toFixed(0) : latest(steps).toFixed(1)) : "–")
}
