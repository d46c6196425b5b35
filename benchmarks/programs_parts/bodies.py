"""The workloads in ramet's language: one program each. In: a row's texts and turns. Out: what the model said.

Every program is written as its user would: nothing waits that need not, tools are operations of the program (`call`),
branches are forks. Lengths are fixed (end tokens are ignored), so that every model makes as many tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import ramet as rt
from programs_parts.scenes import CHAINS, DIMENSIONS, GRADES, LETTERS, SKELETON, YES, Turn
from programs_parts.texts import INVOICE, REPORT, answer, points
from ramet.frontend.ir import Jump


async def used(text: str, turn: Turn) -> str:
    """A tool: takes its time, whatever it is asked for."""
    await asyncio.sleep(turn.seconds)
    return turn.result


@rt.function(temperature=0, ignore_eos=True)
def chat_control(s: rt.State, prompt: str) -> str:
    """One prompt, one answer."""
    s += prompt
    return s.gen(max_tokens=80).get()


@rt.function(temperature=0, ignore_eos=True)
def mmlu(s: rt.State, shots: str, question: str) -> str:
    """A choice of four letters behind examples."""
    s += shots + question
    return s.select(LETTERS).get()


@rt.function(temperature=0, ignore_eos=True)
def hellaswag(s: rt.State, shots: str, context: str, first: str, second: str, third: str, fourth: str) -> str:
    """The likeliest of four endings of many tokens."""
    s += shots + context
    return s.select([first, second, third, fourth]).get()


@rt.function(temperature=0, ignore_eos=True)
def react(s: rt.State, shots: str, question: str, turns: Sequence[Turn]) -> list[str]:
    """Thought, action, observation; the tool is an operation: no turn waits for the body."""
    s += shots + question
    actions = []
    for turn in turns:
        s += "Thought:"
        s.gen(max_tokens=24)
        s += "\nAction:"
        action = s.gen(max_tokens=8)
        s += "\nObservation: " + s.call(used, action, turn) + "\n"
        actions.append(action)
    return rt.gather(*actions)


@rt.function(temperature=0, ignore_eos=True)
def tree_of_thought(s: rt.State, base: str, problem: str) -> list[str]:
    """Three levels of three proposals for each of two paths; a level is one submission."""
    s += base + problem

    def propose(branch: rt.State, level: int) -> rt.Value[str]:
        branch += f"Step {level + 1}, idea {branch.item + 1}:"
        thought = branch.gen(max_tokens=40)
        branch += "\n"
        return thought

    def judge(branch: rt.State) -> rt.Value[str]:
        branch += "Value of this path from 1 to 5: "
        return branch.select(GRADES)

    return list(rt.tree_search(s, propose, n=3, depth=3, keep=2, judge=judge).values)


@rt.function(temperature=0, ignore_eos=True)
def skeleton(s: rt.State, question: str) -> list[str]:
    """A list of points, all of them written out at once, a summary."""
    s += f"Question: {question}\nGive a skeleton of {SKELETON} short numbered points.\n1."
    titles = points("1." + s.gen(max_tokens=48).get(), SKELETON)
    s += "\n"
    branches = s.fork(titles)
    for number, branch in enumerate(branches):
        branch += f"Write two sentences for point {number + 1}, {branch.item}:"
        branch.gen(name="body", max_tokens=48)
    bodies = branches.value("body")
    branches.join("concat", template="{item}:{body}\n")
    s += "Summary:"
    summary = s.gen(max_tokens=32)
    return [*bodies.get(), summary.get()]


@rt.function(temperature=0, ignore_eos=True)
def judge(s: rt.State, essay: str, jump: Jump = "canonical") -> list[str]:
    """Six branches judge an essay; their verdicts become a report."""
    s += f"You judge essays strictly.\nEssay: {essay}\n"
    branches = s.fork(DIMENSIONS)
    for branch in branches:
        branch += f"Assess the {branch.item} in one sentence:"
        branch.gen(name="why", max_tokens=24)
        branch += "\nScore from 1 to 9: "
        branch.gen(name="score", regex="[1-9]", max_tokens=2)
    whys, scores = branches.value("why"), branches.value("score")
    branches.join("concat", template="{item}:{why} ({score})\n")
    s += "JSON report: "
    report = s.gen(json_schema=json.dumps(REPORT), max_tokens=120, jump=jump)
    return [*whys.get(), *scores.get(), report.get()]


@rt.function(temperature=0, ignore_eos=True)
def invoice(s: rt.State, letter: str, jump: Jump = "canonical") -> str:
    """A letter's fields as JSON."""
    s += f"Letter: {letter}\nThe fields of its invoice as JSON: "
    return s.gen(json_schema=json.dumps(INVOICE), max_tokens=200, jump=jump).get()


@rt.function(temperature=0, ignore_eos=True)
def chat_short(s: rt.State, first: str, second: str, third: str, fourth: str) -> list[str]:
    """Four turns of short answers. What the user says does not depend on them: nothing waits."""
    return _chat(s, (first, second, third, fourth), 8)


@rt.function(temperature=0, ignore_eos=True)
def chat_long(s: rt.State, first: str, second: str, third: str, fourth: str) -> list[str]:
    """Four turns of long answers."""
    return _chat(s, (first, second, third, fourth), 64)


def _chat(s: rt.State, turns: Sequence[str], tokens: int) -> list[str]:
    s += "System: You are concise.\n"
    said = []
    for turn in turns:
        s += turn + "\nAssistant:"
        said.append(s.gen(max_tokens=tokens))
        s += "\n"
    return rt.gather(*said)


@rt.function(temperature=0, ignore_eos=True)
def rag(s: rt.State, question: str, first: str, second: str, third: str, fourth: str, fifth: str) -> str:
    """Each of five documents is asked for its relevance; the answer reads three at most, in the documents' order."""
    documents = (first, second, third, fourth, fifth)
    verdicts = []
    for branch, document in zip(s.fork(len(documents)), documents, strict=True):
        branch += f"Document: {document}\nIs the document relevant? Question: {question}\nAnswer yes or no:"
        verdicts.append(branch.select(YES))
    relevant = [document for document, said in zip(documents, rt.gather(*verdicts), strict=True) if said == " yes"]
    s += "Use the documents.\n"
    for document in (relevant or list(documents))[:3]:
        s += f"Document: {document}\n"
    s += f"Question: {question}\nAnswer:"
    return s.gen(max_tokens=32).get()


@rt.function(temperature=0, ignore_eos=True)
def agent(s: rt.State, session: str, turns: Sequence[Turn]) -> list[str]:
    """A private context and a tool at every turn. All turns are sent at once, with places for what the tools will say:
    the engine knows from the beginning what each agent will hold."""
    s += session
    said = []
    for turn in turns:
        s += "Act:"
        act = s.gen(max_tokens=24)
        s += "\nResult: " + s.call(used, act, turn) + "\n"
        said.append(act)
    return rt.gather(*said)


@rt.function(temperature=0.8, ignore_eos=True)
def vote(s: rt.State, question: str, lengths: Sequence[int], early_stop: bool = True) -> int:
    """Self-consistency: the answer that most chains reach. Chains end at places of their own."""
    s += question
    chain = rt.vote(
        s,
        lambda branch: branch.gen(max_tokens=lengths[branch.item]),
        n=CHAINS,
        key=answer,
        early_stop=early_stop,
    )
    return answer(chain)


@rt.function(temperature=1, ignore_eos=True)
def rollouts(s: rt.State, task: str, first: str, second: str) -> list[str]:
    """A group of eight rollouts as a tree: two, each going on as two, each of these as two, with logprobs."""
    s += task
    leaves = []
    for branch in s.fork(2):
        branch.gen(max_tokens=32, logprobs=0)
        branch += f"\nResult: {first}\nAct:"
        for below in branch.fork(2):
            below.gen(max_tokens=32, logprobs=0)
            below += f"\nResult: {second}\nAct:"
            leaves += [leaf.gen(max_tokens=32, logprobs=0) for leaf in below.fork(2)]
    return rt.gather(*leaves)
