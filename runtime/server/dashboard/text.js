"use strict"
// Small things that all parts use. Names and paths come from clients: they reach the page as text nodes only.

const $ = id => document.getElementById(id)

const make = (tag, kind, text) => {
  const node = document.createElement(tag)
  if (kind) node.className = kind
  if (text !== undefined) node.textContent = text
  return node
}

const say = (node, text) => { if (node.textContent !== text) node.textContent = text }

const digits = new Intl.NumberFormat("en")
const whole = value => digits.format(Math.round(value))

const short = value => {
  if (value < 10_000) return whole(value)
  const [scale, unit] = value < 1e6 ? [1e3, "k"] : [1e6, "M"]
  return (value / scale).toFixed(value < 100 * scale ? 1 : 0) + unit
}

const pace = value => value >= 100 ? short(value) : value >= 10 ? value.toFixed(0) : value.toFixed(value ? 1 : 0)

const many = (count, one, more = one + "s") => `${whole(count)} ${count === 1 ? one : more}`

const span = seconds => {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.floor(seconds)} s`
  const minutes = Math.floor(seconds / 60)
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

// The least round number that is not below `value`.
const ceiling = value => {
  const scale = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)))
  return scale * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find(step => step * scale >= value * (1 - 1e-9))
}

// Bring the children of `parent` in line with `items`, keeping the elements of those that stay.
const keyed = (parent, items, key, create, update) => {
  const known = parent.known || (parent.known = new Map())
  const wanted = new Map(items.map(item => [key(item), item]))
  for (const [name, node] of known) if (!wanted.has(name)) { node.remove(); known.delete(name) }
  let place = parent.firstElementChild
  for (const [name, item] of wanted) {
    let node = known.get(name)
    if (!node) known.set(name, node = create(item))
    if (node !== place) parent.insertBefore(node, place)
    else place = place.nextElementSibling
    update(node, item)
  }
}

// An array of the stream as an object.
const record = (columns, values) => Object.fromEntries(columns.map((name, place) => [name, values[place]]))
