"""What fewer bits cost. In: a model and a text. Out: for each dtype of the native kernels, against bfloat16, the mean
and largest KL divergence of next-token distributions, greedy agreement, and perplexity; a table and JSON.

The text is the language reference that Python ships (`pydoc_data`), some 2,000 tokens in windows of 512. KL is of
bfloat16 to the other, in nats. `gate` says whether a dtype is good enough to be a default: KL at most 0.01 and
perplexity within 1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from ramet.kernels.cpu import library
from ramet.runtime.batch import Batch, Draws, Targets
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.native import NativeRunner, weights_of
from ramet.runtime.packed import DTYPES

WINDOW = 512
TOPICS = ("specialnames", "compound", "types", "formatstrings")
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quality:
    """One dtype against the reference, over `tokens` predictions."""

    dtype: str
    tokens: int
    kl_mean: float
    kl_largest: float
    greedy_agreement: float
    perplexity: float
    perplexity_change: float
    gate: bool


def text_batch(ids: I32) -> Batch:
    """A batch that computes `ids` as one sequence and wants the logits of all of them."""
    count = len(ids)
    order, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
    draws = Draws.of(none, none, np.zeros(0, np.int64))
    ends = np.array([0, count], np.int32)
    return Batch(0, ids, order, order, ends, ends, order, none, none, draws, Targets(order, ids))


def logprobs(runner: NativeRunner, ids: I32) -> F64:
    """Log-probabilities `[len(ids), V]` of the token after each."""
    logits = runner.forward(text_batch(ids)).logits
    assert logits is not None, "all rows were asked for"
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def compare(reference: NativeRunner, other: NativeRunner, windows: list[I32]) -> Quality:
    """Both over the same windows."""
    divergence, agree, mine, theirs = [], [], [], []
    for ids in windows:
        p, q = logprobs(reference, ids), logprobs(other, ids)
        divergence.append((np.exp(p) * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        at = np.arange(len(ids) - 1)
        mine.append(p[at, ids[1:]])
        theirs.append(q[at, ids[1:]])
    kl, base = np.concatenate(divergence), float(np.exp(-np.concatenate(mine).mean()))
    perplexity = float(np.exp(-np.concatenate(theirs).mean()))
    change = perplexity / base - 1
    mean = float(kl.mean())
    return Quality(
        other.dtype_name,
        len(kl),
        mean,
        float(kl.max()),
        float(np.concatenate(agree).mean()),
        perplexity,
        change,
        mean <= 0.01 and abs(change) <= 0.01,
    )


def measure(model: str, dtypes: list[str], tokens: int, threads: int, level: str | None) -> list[Quality]:
    """One row per dtype."""
    source = hub.resolve(model)
    spec = hub.load_spec(source)
    encode = load_tokenizer(source).encode
    each = -(-tokens // len(TOPICS))
    windows = []
    for topic in TOPICS:
        ids = np.array(encode(topics[topic][: 8 * each])[:each], np.int32)
        windows += [ids[first : first + WINDOW] for first in range(0, len(ids), WINDOW)]
    lib = library.load()
    pool = library.Pool(lib, threads, level)

    def runner(dtype: str) -> NativeRunner:
        weights = weights_of(lib, pool, spec, source, dtype)
        return NativeRunner(weights, pool, capacity=WINDOW, rows=1, context=WINDOW)

    reference = runner("bfloat16")
    return [compare(reference, runner(dtype), windows) for dtype in dtypes]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtypes", nargs="+", default=[d for d in DTYPES if d != "bfloat16"], choices=DTYPES)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--level", default=None, choices=library.LEVELS, help="of instructions; the machine's highest")
    parser.add_argument("--json", type=Path, help="write the same here")
    options = parser.parse_args()
    rows = measure(options.model, options.dtypes, options.tokens, options.threads, options.level)
    for row in rows:
        print(
            f"{row.dtype:9} {row.tokens} tokens  KL mean {row.kl_mean:.5f} largest {row.kl_largest:.3f}  "
            f"greedy {row.greedy_agreement:.2%}  perplexity {row.perplexity:.3f} ({row.perplexity_change:+.2%})  "
            f"default: {'yes' if row.gate else 'no'}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
