"use strict"
// Live programs: each with its branches, what they do, and what they wait for. Those that end fade for a moment.

const STAY = 2500 // ms that a program that is over stays in sight
const recent = new Map()

const SUMS = { decoding: "decoding", prompt: "in the prompt", queued: "queued", waiting: "waiting", idle: "idle", failed: "failed", done: "done" }
const KINDS = { generate: "generate", choose: "select", score: "score", append: "text", fork: "fork", join: "join", put: "put", close: "close" }

// "0.2.b1.4.b0" is two forks deep; the branch itself is its last part.
const depth = name => (name.match(/\.b\d+/g) || []).length
const tail = name => name.replace(/^.*\.(\d+\.b\d+)$/, "$1")

// Parents before children, forks and branches in the order of their numbers.
const ordered = branches => {
  const paths = new Map(branches.map(branch => [branch, branch.name.split(".").map(part => Number(part.replace("b", "")) || 0)]))
  const compare = (a, b) => {
    const place = a.findIndex((part, n) => part !== b[n])
    return place < 0 ? a.length - b.length : place >= b.length ? 1 : a[place] - b[place]
  }
  return [...branches].sort((a, b) => compare(paths.get(a), paths.get(b)))
}

const does = branch => {
  const kind = KINDS[branch.op] || branch.op
  const held = branch.constrained ? ", constrained" : ""
  switch (branch.state) {
    case "decoding": return `${kind}${held}`
    case "prompt": return kind ? `prompt of ${kind}` : "prompt"
    case "queued": return kind ? `queued: ${kind}` : "queued"
    case "waiting": return `${kind} waits for ${branch.op === "join" ? "branch" : "the value of"} ${branch.on}`
    case "idle": return "waits for its program"
    default: return branch.state
  }
}

const share = branch => branch.state === "decoding" || branch.made ? branch.made / Math.max(1, branch.limit)
  : branch.state === "prompt" || branch.state === "queued" ? branch.computed / Math.max(1, branch.tokens)
    : branch.state === "done" ? 1 : 0

const tally = branch => branch.state === "decoding" || branch.made ? `${short(branch.made)} / ${short(branch.limit)}`
  : branch.state === "prompt" ? `${short(branch.computed)} / ${short(branch.tokens)}` : short(branch.tokens)

const createBranch = () => {
  const row = make("div", "branch"), meter = make("span", "meter")
  meter.append(make("i"))
  row.append(make("span", "what"), meter, make("span", "count"))
  row.firstChild.append(make("span"), make("i"))
  return row
}

const updateBranch = (row, branch) => {
  const [what, meter, count] = row.children
  row.className = `branch ${branch.state === "prompt" ? "computing" : branch.state}`
  what.style.setProperty("--level", Math.min(depth(branch.name), 6))
  say(what.children[0], branch.name === "0" ? "root" : tail(branch.name))
  say(what.children[1], ` ${does(branch)}`)
  what.title = `${branch.name}: ${does(branch)}`
  meter.firstChild.style.width = `${(100 * Math.min(1, share(branch))).toFixed(1)}%`
  say(count, tally(branch))
  count.title = `${many(branch.tokens, "token")}, ${whole(branch.base)} of them shared at the fork`
}

const createProgram = program => {
  const article = make("article", "program"), head = make("div")
  head.append(make("h3"), make("span", "age"))
  article.append(head, make("p", "sums"), make("div"), make("p", "rest-of"))
  article.addEventListener("pointerenter", () => light(new Set(article.program.branches.map(branch => branch.node))))
  article.addEventListener("pointerleave", () => light(null))
  return article
}

const updateProgram = (article, { program, over }) => {
  const [head, sums, rows, rest] = article.children
  article.program = program
  article.classList.toggle("over", over)
  say(head.children[0], program.name || `program ${program.key + 1}`)
  head.children[0].title = program.name
  say(head.children[1], over ? "ended" : span(program.seconds))
  const saved = program.prompt ? `, ${(100 * program.cached / program.prompt).toFixed(0)}% of ${short(program.prompt)} prompt tokens cached` : ""
  const forced = program.forced ? ` (${short(program.forced)} forced)` : ""
  say(sums, `${many(program.calls, "call")}, ${short(program.generated)} generated${forced}${saved}`)
  keyed(rows, ordered(program.branches), branch => branch.name, createBranch, updateBranch)
  const shown = {}
  for (const branch of program.branches) shown[branch.state] = (shown[branch.state] || 0) + 1
  const others = program.states.map((count, place) => [count - (shown[stream.states[place]] || 0), SUMS[stream.states[place]]])
  say(rest, others.filter(([count]) => count > 0).map(([count, what]) => `+ ${whole(count)} ${what}`).join(", "))
  rest.hidden = !rest.textContent
}

const drawPrograms = last => {
  const now = performance.now()
  for (const program of last.programs) recent.set(program.key, { program, seen: now })
  for (const [key, { seen }] of recent) if (now - seen > STAY || recent.size > 64 && seen < now) recent.delete(key)
  const items = [...recent.values()].map(({ program, seen }) => ({ program, over: seen < now })).sort((a, b) => a.program.key - b.program.key)
  keyed($("programs"), items, item => item.program.key, item => createProgram(item.program), updateProgram)
  const hidden = last.more ? `, ${whole(last.more)} not shown` : ""
  say($("programs-note"), last.programs.length ? `${many(last.programs.length + last.more, "runs", "run")}${hidden}${last.whole ? "" : ", of this key"}` : last.whole ? "" : "of this key")
  $("programs").parentElement.classList.toggle("bare", !items.length)
}

// Mark the programs that have a branch through one of the nodes `ids`.
const markPrograms = ids => {
  for (const article of $("programs").children) {
    article.classList.toggle("path", Boolean(ids) && article.program.branches.some(branch => ids.has(branch.node)))
  }
}
