"""Which sections a run has, in which order. In: kinds and models that are asked for. Out: `Section`s.

What matters most comes first, since the budget may end before the list does; sections of one model stand together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gpu_parts import checks, chip, compared, engine, host, kernels, ladder, peer, rehearse
from gpu_parts.models import LLAMA1, LLAMA8, QWEN, SMOL
from gpu_parts.session import Section, Session

KINDS = (
    "limits", "rehearse", "check", "ladder", "real", "decode", "prefill", "mix", "forks", "structured", "host",
    "deterministic", "peer", "kernels",
)  # fmt: skip
ENGINE: dict[str, Callable[[Session, str], None]] = {
    "check": checks.run,
    "decode": engine.decode,
    "prefill": engine.prefill,
    "mix": engine.mix,
    "forks": compared.forks,
    "structured": compared.structured,
    "host": host.overhead,
    "deterministic": engine.deterministic,
    "peer": peer.run,
    "kernels": kernels.run,
}
# (kind, model, seconds on an H100, loading included where it comes first)
ORDER = (
    ("check", QWEN, 15), ("check", LLAMA8, 15), ("check", LLAMA1, 15), ("check", SMOL, 15),
    ("decode", QWEN, 18), ("prefill", QWEN, 3), ("mix", QWEN, 10), ("forks", QWEN, 15), ("structured", QWEN, 4),
    ("host", QWEN, 5),
    ("decode", LLAMA8, 25), ("prefill", LLAMA8, 10), ("mix", LLAMA8, 25),
    ("deterministic", QWEN, 25), ("peer", QWEN, 60),
    ("kernels", LLAMA8, 30),
    ("decode", LLAMA1, 18), ("prefill", LLAMA1, 3), ("mix", LLAMA1, 10), ("peer", LLAMA1, 60),
    ("decode", SMOL, 18), ("prefill", SMOL, 2), ("mix", SMOL, 8), ("peer", SMOL, 60),
    ("deterministic", LLAMA8, 60), ("kernels", QWEN, 20), ("forks", LLAMA1, 15),
)  # fmt: skip


def sections(
    kinds: tuple[str, ...], models: tuple[str, ...], *, toy: bool = False, limits: bool = True
) -> list[Section]:
    """`kinds` empty: all; `models` empty: those of `ORDER`, else every kind for each of them that is named. With
    `limits` the chip's are always measured."""
    order = [(kind, model, seconds) for kind, model, seconds in ORDER if not models or model in models]
    named = [(kind, model) for kind, model, _ in order]
    order += [(kind, model, 30) for kind in kinds for model in models if kind in ENGINE and (kind, model) not in named]
    if toy and not models:
        order = [(kind, SMOL, 0) for kind in ENGINE]
    made = [
        Section("limits", "", 3, chip.run),
        Section("rehearse", "", rehearse.SECONDS, rehearse.run),
        Section("ladder", "", 25, ladder.run),
        Section("real", "", 20, ladder.run_real),
    ]
    made += [Section(kind, model, seconds, _of(kind, model)) for kind, model, seconds in order]
    return [s for s in made if not kinds or s.kind in kinds or (limits and s.kind == "limits")]


def _of(kind: str, model: str) -> Callable[[Session], None]:
    return partial(_apply, ENGINE[kind], model)


def _apply(act: Callable[[Session, str], None], model: str, session: Session) -> None:
    act(session, model)
