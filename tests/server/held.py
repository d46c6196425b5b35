"""Programs that stay: over a WebSocket that is left open, so that tests can look at a server as long as they like."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import connect

from .serving import WAIT, Served

PROMPT = {"type": "text", "id": "0.0", "seq": "0", "parts": ["Rumpelstiltskin spins straw into gold"]}
FORK = {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]}
WORDS = str(PROMPT["parts"][0]).split()


def gen(seq: str, tokens: int = 6) -> dict[str, Any]:
    """A generation on a branch."""
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    return {"type": "gen", "id": f"{seq}.0", "seq": seq, "var": "x", "sampling": sampling}


TWO = (PROMPT, FORK, gen("0.1.b0"), gen("0.1.b1"))


@contextlib.contextmanager
def held(served: Served, name: str, ops: tuple[Any, ...] = TWO, key: str = "") -> Iterator[None]:
    """A program whose generations are done, and which waits for more operations until the end of the block."""
    url = "ws" + served.url.removeprefix("http") + "/v1/programs"
    headers = {"x-api-key": key} if key else {}
    with connect(url, additional_headers=headers, open_timeout=WAIT) as line:
        line.send(json.dumps({"version": 1, "header": {"name": name}, "ops": list(ops)}))
        left = sum(op["type"] == "gen" for op in ops)
        while left:
            event = json.loads(line.recv(WAIT))
            assert event["type"] not in ("failed", "ended", "error"), event
            left -= event["type"] == "finished"
        yield
