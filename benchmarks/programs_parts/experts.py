"""The workloads as an expert writes them against an OpenAI-style server. In: a client, a row. Out: what the model said.

One kept-alive connection pool, everything that can overlap in `gather`, lists of prompts and logprobs of the prompt
for scoring, grammars on the server. The texts are those of bodies.py, sent again with every call.
"""

from __future__ import annotations

import asyncio
from typing import Any

from programs_parts.client import Client
from programs_parts.scenes import DIMENSIONS, GRADES, LETTERS, SKELETON, YES, Row
from programs_parts.texts import INVOICE, REPORT, answer, points


async def chat_control(client: Client, row: Row) -> str:
    """W00."""
    return await client.gen(row.texts[0], 80)


async def mmlu(client: Client, row: Row) -> str:
    """W01."""
    shots, question = row.texts
    return await client.pick(shots + question, LETTERS)


async def hellaswag(client: Client, row: Row) -> str:
    """W02."""
    shots, context, *ends = row.texts
    return await client.score(shots + context, ends)


async def react(client: Client, row: Row) -> list[str]:
    """W03."""
    shots, question = row.texts
    prompt, actions = shots + question, []
    for turn in row.turns:
        prompt += "Thought:"
        prompt += await client.gen(prompt, 24)
        prompt += "\nAction:"
        actions.append(await client.gen(prompt, 8))
        await asyncio.sleep(turn.seconds)
        prompt += f"{actions[-1]}\nObservation: {turn.result}\n"
    return actions


async def tree_of_thought(client: Client, row: Row) -> list[str]:
    """W04. A path is its text and its thoughts; equals keep their order."""
    front = [("".join(row.texts), list[str]())]
    for depth in range(3):
        at = [(f"{text}Step {depth + 1}, idea {idea + 1}:", said) for text, said in front for idea in range(3)]
        thoughts = await asyncio.gather(*(client.gen(text, 40) for text, _ in at))
        paths = [(f"{text}{new}\n", [*said, new]) for (text, said), new in zip(at, thoughts, strict=True)]
        values = await asyncio.gather(
            *(client.pick(text + "Value of this path from 1 to 5: ", GRADES) for text, _ in paths)
        )
        order = sorted(range(len(paths)), key=lambda k: (-int(values[k]), k))
        front = [paths[k] for k in order[:2]]
    return front[0][1]


async def skeleton(client: Client, row: Row) -> list[str]:
    """W05."""
    prompt = f"Question: {row.texts[0]}\nGive a skeleton of {SKELETON} short numbered points.\n1."
    outline = await client.gen(prompt, 48)
    titles, prompt = points("1." + outline, SKELETON), f"{prompt}{outline}\n"
    bodies = await asyncio.gather(
        *(
            client.gen(f"{prompt}Write two sentences for point {number + 1}, {title}:", 48)
            for number, title in enumerate(titles)
        )
    )
    prompt += "".join(f"{title}:{body}\n" for title, body in zip(titles, bodies, strict=True)) + "Summary:"
    return [*bodies, await client.gen(prompt, 32)]


async def judge(client: Client, row: Row) -> list[str]:
    """W06."""
    prompt = f"You judge essays strictly.\nEssay: {row.texts[0]}\n"

    async def assessed(dimension: str) -> tuple[str, str]:
        text = f"{prompt}Assess the {dimension} in one sentence:"
        why = await client.gen(text, 24)
        return why, await client.pick(f"{text}{why}\nScore from 1 to 9: ", [f"{grade}" for grade in range(1, 10)])

    found = await asyncio.gather(*(assessed(dimension) for dimension in DIMENSIONS))
    prompt += "".join(f"{name}:{why} ({score})\n" for name, (why, score) in zip(DIMENSIONS, found, strict=True))
    report = await client.gen(prompt + "JSON report: ", 120, schema=REPORT)
    return [*(why for why, _ in found), *(score for _, score in found), report]


async def invoice(client: Client, row: Row) -> str:
    """W07."""
    return await client.gen(f"Letter: {row.texts[0]}\nThe fields of its invoice as JSON: ", 200, schema=INVOICE)


async def chat_short(client: Client, row: Row) -> list[str]:
    """W08."""
    return await _chat(client, row, 8)


async def chat_long(client: Client, row: Row) -> list[str]:
    """W09."""
    return await _chat(client, row, 64)


async def _chat(client: Client, row: Row, tokens: int) -> list[str]:
    prompt, said = "System: You are concise.\n", list[str]()
    for turn in row.texts:
        prompt += turn + "\nAssistant:"
        said.append(await client.gen(prompt, tokens))
        prompt += said[-1] + "\n"
    return said


async def rag(client: Client, row: Row) -> str:
    """W10."""
    question, *documents = row.texts
    asked = (
        f"Document: {each}\nIs the document relevant? Question: {question}\nAnswer yes or no:" for each in documents
    )
    verdicts = await asyncio.gather(*(client.pick(text, YES) for text in asked))
    relevant = [document for document, said in zip(documents, verdicts, strict=True) if said == " yes"]
    read = "".join(f"Document: {document}\n" for document in (relevant or documents)[:3])
    return await client.gen(f"Use the documents.\n{read}Question: {question}\nAnswer:", 32)


async def agent(client: Client, row: Row) -> list[str]:
    """W11."""
    prompt, said = row.texts[0], list[str]()
    for turn in row.turns:
        prompt += "Act:"
        said.append(await client.gen(prompt, 24))
        await asyncio.sleep(turn.seconds)
        prompt += f"{said[-1]}\nResult: {turn.result}\n"
    return said


async def vote(client: Client, row: Row) -> int:
    """W12. `n=8` has one length for all chains; chains of lengths of their own are a request each."""
    chains = await asyncio.gather(
        *(client.gen(row.texts[0], tokens, temperature=0.8, seed=number) for number, tokens in enumerate(row.lengths))
    )
    votes = [answer(chain) for chain in chains]
    return max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))


async def rollouts(client: Client, row: Row) -> list[str]:
    """W13. What the trajectories share is sent again, and found in the server's cache."""
    options: dict[str, Any] = {"temperature": 1.0, "logprobs": True}
    paths = [row.texts[0]] * 2
    for number in range(3):
        made = await asyncio.gather(
            *(client.gen(text, 32, seed=8 * number + at, **options) for at, text in enumerate(paths))
        )
        if number == 2:
            return list(made)
        result = row.turns[number].result
        paths = [
            f"{text}{new}\nResult: {result}\nAct:" for text, new in zip(paths, made, strict=True) for _ in range(2)
        ]
    raise AssertionError("three turns")
