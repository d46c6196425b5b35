"use strict"
// The prefix tree as an icicle: tokens run from left to right, what hangs below each other shares what stands to its left.

const forest = { nodes: [], bars: [], programs: [], picked: null, lit: null }

// Bars with their places as shares of the pane: x by depth in tokens, y by leaves.
const arrange = nodes => {
  const children = new Map(nodes.map((_, place) => [place, []]))
  const roots = []
  nodes.forEach((node, place) => node.parent < 0 ? roots.push(place) : children.get(node.parent).push(place))
  const stable = (a, b) => nodes[a].id - nodes[b].id // the stream's order changes with use
  const leaves = nodes.map(() => 0)
  for (let place = nodes.length - 1; place >= 0; place--) { // parents stand before their children
    leaves[place] = Math.max(1, leaves[place] + (nodes[place].hidden ? 1 : 0))
    if (nodes[place].parent >= 0) leaves[nodes[place].parent] += leaves[place]
  }
  const total = roots.reduce((sum, place) => sum + leaves[place], 0) || 1
  const reach = nodes.reduce((most, node) => Math.max(most, node.depth), 0)
  const most = ceiling(Math.max(16, reach * 1.02))
  const bars = []
  const lay = (place, top, level) => {
    const node = nodes[place], tall = leaves[place] / total
    const bar = { key: `n${node.id}`, node, level, top, tall, left: (node.depth - node.tokens) / most, wide: node.tokens / most, inside: [] }
    if (node.tokens) bars.push(bar)
    let next = top
    for (const child of children.get(place).sort(stable)) {
      const below = lay(child, next, level + 1)
      bar.inside.push(below)
      below.above = node.tokens ? bar : null
      next += leaves[child] / total
    }
    if (node.hidden) bar.inside.push({ key: `h${node.id}`, rest: true, node, level: level + 1, top: next, tall: 1 / total, above: node.tokens ? bar : null,
      left: node.depth / most, wide: Math.min(Math.max(.035, node.hidden_tokens / node.hidden / most), Math.max(.035, 1 - node.depth / most)), inside: [] })
    if (node.hidden) bars.push(bar.inside.at(-1))
    return bar
  }
  let top = 0
  for (const root of roots.sort(stable)) { lay(root, top, 0); top += leaves[root] / total }
  return { bars, most }
}

const described = bar => {
  const { node } = bar
  if (bar.rest) return `${many(node.hidden, "more run")} with ${many(node.hidden_tokens, "token")} below, not drawn one by one`
  const where = node.tokens === node.depth ? "" : `, tokens ${whole(node.depth - node.tokens + 1)} to ${whole(node.depth)} of its path`
  const whom = node.refs ? `held by ${many(node.refs, "branch", "branches")} of ${many(node.programs, "program")}`
    : node.age < 0 ? "cached, the next to go when room is needed" : `cached, last used ${node.age ? `${many(node.age, "look-up")} ago` : "just now"}`
  const below = node.below ? `; ${many(node.below, "token")} hang below` : ""
  return `${many(node.tokens, "token")}${where}; ${whom}${below}`
}

const drawTree = tree => {
  const { nodes } = tree
  const { bars, most } = arrange(nodes)
  const oldest = nodes.reduce((age, node) => Math.max(age, node.age), 1)
  const pane = $("icicle"), height = pane.clientHeight, width = pane.clientWidth
  Object.assign(forest, { nodes, bars })
  keyed(pane, bars, bar => bar.key, createBar, (element, bar) => {
    const { node } = bar, style = element.style
    element.bar = bar
    element.className = `bar${bar.rest ? " rest" : node.refs ? " held" : ""}${bar.tall * height < 4 ? " thin" : ""}`
    style.left = `${100 * bar.left}%`
    style.top = `${100 * bar.top}%`
    style.width = `max(3px, ${100 * bar.wide}%)`
    style.height = `${100 * bar.tall}%`
    style.setProperty("--heat", node.age < 0 ? 0 : (1 - node.age / oldest).toFixed(3))
    const room = bar.tall * height >= 13 ? bar.wide * width : 0
    const count = bar.rest ? `+${short(node.hidden)}` : short(node.tokens)
    say(element, room < 9 + 7 * count.length ? "" : !bar.rest && node.refs > 1 && room > 120 ? `${count} · ${node.refs} branches` : count)
    element.setAttribute("aria-level", bar.level || 1)
    element.setAttribute("aria-label", described(bar))
  })
  const held = nodes.filter(node => node.refs).reduce((sum, node) => sum + node.tokens, 0)
  const all = nodes.reduce((sum, node) => sum + node.tokens + node.hidden_tokens, 0)
  const runs = nodes.reduce((sum, node) => sum + (node.tokens ? 1 : 0) + node.hidden, 0)
  const elsewhere = tree.elsewhere ? `, ${short(tree.elsewhere)} more elsewhere` : ""
  say($("tree-note"), runs || tree.elsewhere ? `${many(all, "token")} in ${many(runs, "run")}, ${whole(held)} held${elsewhere}` : "")
  $("axis").hidden = false
  keyed($("axis"), bars.length ? [0, .25, .5, .75, 1].map(share => ({ share, most })) : [], item => item.share, () => make("span"), (mark, item) => {
    mark.style.left = `${100 * item.share}%`
    say(mark, item.share ? short(item.share * most) : "token 0")
  })
  pane.parentElement.classList.toggle("bare", !bars.length)
  highlight()
}

const createBar = bar => {
  const element = make("div", "bar")
  element.setAttribute("role", "treeitem")
  element.id = bar.key
  return element
}

// Mark the picked bar with all that it continues, or the paths of a program that is pointed at.
const highlight = () => {
  const picked = forest.bars.find(bar => bar.key === forest.picked)
  const path = new Set()
  const climb = bar => { for (; bar && !path.has(bar.key); bar = bar.above) path.add(bar.key) }
  if (forest.lit) for (const bar of forest.bars) { if (forest.lit.has(bar.node.id) && !bar.rest) climb(bar) }
  else if (picked) { climb(picked.above); within(picked, bar => path.add(bar.key)) }
  const pane = $("icicle")
  pane.classList.toggle("picking", path.size > 0)
  for (const element of pane.children) {
    element.classList.toggle("path", path.has(element.id))
    element.classList.toggle("on", !forest.lit && element.id === forest.picked)
  }
  if (picked) pane.setAttribute("aria-activedescendant", picked.key)
  else pane.removeAttribute("aria-activedescendant")
  say($("detail"), picked && !forest.lit ? described(picked) : forest.bars.length ? "Pick a bar to see what it is." : "")
  markPrograms(picked && !forest.lit ? below(picked) : null)
}

// Do something with a bar and all that are drawn below it.
const within = (bar, act) => {
  const stack = [bar]
  while (stack.length) {
    const each = stack.pop()
    act(each)
    stack.push(...each.inside)
  }
}

// Ids of a bar's node and all that are drawn below it.
const below = bar => {
  const ids = new Set()
  within(bar, each => ids.add(each.node.id))
  return ids
}

const pick = key => {
  forest.picked = key
  highlight()
}

const light = ids => {
  forest.lit = ids && ids.size ? ids : null
  highlight()
}

const neighbour = (bar, key) => {
  const { bars } = forest
  if (!bar) return bars.find(each => !each.above)
  if (key === "ArrowLeft") return bar.above
  if (key === "ArrowRight") return bar.inside[0]
  const level = bars.filter(each => each.level === bar.level).sort((a, b) => a.top - b.top)
  return level[level.indexOf(bar) + (key === "ArrowDown" ? 1 : -1)]
}

$("icicle").addEventListener("pointermove", event => pick(event.target.bar ? event.target.bar.key : null))
$("icicle").addEventListener("pointerdown", event => pick(event.target.bar ? event.target.bar.key : null))
$("icicle").addEventListener("pointerleave", event => { if (event.pointerType === "mouse") pick(null) })
$("icicle").addEventListener("blur", () => pick(null))
$("icicle").addEventListener("keydown", event => {
  if (event.key === "Escape") return pick(null)
  if (!event.key.startsWith("Arrow")) return
  event.preventDefault()
  const next = neighbour(forest.bars.find(bar => bar.key === forest.picked), event.key)
  if (next) pick(next.key)
})
