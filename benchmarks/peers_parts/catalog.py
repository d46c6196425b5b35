"""Which engines there are to compare with. In: the adapters' headers. Out: a `Peer` for each.

An adapter is one file in adapters/: a script with inline metadata (PEP 723), whose dependencies are what its virtual
environment gets, and a table [tool.peer] with what is said of it here. Adding a peer is adding such a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ramet.frontend.errors import ModelError

ADAPTERS = Path(__file__).resolve().parent / "adapters"
OURS = "ramet"
_HEADER = re.compile(r"(?m)^# /// script\n(?P<lines>(?:#(?: .*)?\n)+?)# ///$")


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of a peer: `bits` of a weight, so that rows of the same precision are told from others; `options`
    are the adapter's; `optional`: only measured when it is named itself; `environment`: variables beside the peer's, or
    instead of them."""

    peer: str
    name: str
    bits: int
    options: dict[str, Any]
    optional: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people, unique."""
        return f"{self.peer} {self.name}"


@dataclass(frozen=True, slots=True)
class Peer:
    """An adapter's header. `requirements`: of its environment, none where it runs in ours; `constrained`: whether
    constraints.txt holds there; `reads_weights`: whether it needs
    them in other formats; `building`, `environment`: variables while it is installed, and while it runs; `lacks`:
    columns that it has not, with the reason; `without`: packages that are
    removed again; `optional`: only measured when it is named."""

    name: str
    script: Path
    requirements: tuple[str, ...]
    variants: tuple[Variant, ...]
    constrained: bool = True
    optional: bool = False
    reads_weights: bool = True
    without: tuple[str, ...] = ()
    building: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)


def read(script: Path) -> Peer | None:
    """The peer of an adapter; None for a file without a header, which is a part of others."""
    found = _HEADER.search(script.read_text(encoding="utf-8"))
    if found is None:
        return None
    header = tomllib.loads("".join(f"{line[2:]}\n" for line in found["lines"].splitlines()))
    told = header["tool"]["peer"]
    own = ("bits", "optional", "environment")
    variants = tuple(
        Variant(
            told["name"],
            name,
            each["bits"],
            {key: each[key] for key in each if key not in own},
            each.get("optional", False),
            each.get("environment", {}),
        )
        for name, each in told["variants"].items()
    )
    kept = {
        key: told[key]
        for key in ("constrained", "optional", "reads_weights", "without", "building", "environment", "lacks")
        if key in told
    }
    return Peer(told["name"], script, tuple(header.get("dependencies", ())), variants, **kept)


def peers(folders: Iterable[Path] = (ADAPTERS,)) -> list[Peer]:
    """All of them, ours first, the others by name."""
    found = [peer for folder in folders for script in sorted(folder.glob("*.py")) if (peer := read(script))]
    return sorted(found, key=lambda peer: (peer.name != OURS, peer.name))


def chosen(known: Sequence[Peer], wanted: Sequence[str]) -> list[tuple[Peer, Variant]]:
    """What `wanted` names: peers ("openvino") and single settings ("openvino:int8"); none: all that are not optional.
    Ours is always there. Raises `ModelError` for a name that is not known."""
    named = {peer.name: list(peer.variants) for peer in known}
    names = list(wanted) or [peer.name for peer in known if not peer.optional]
    if not any(name.partition(":")[0] == OURS for name in names):
        names.insert(0, OURS)
    out: list[tuple[Peer, Variant]] = []
    for name in names:
        first, _, setting = name.partition(":")
        some = [each for each in named.get(first, ()) if (each.name == setting if setting else not each.optional)]
        if not some:
            every = ", ".join(f"{peer.name} ({', '.join(each.name for each in peer.variants)})" for peer in known)
            raise ModelError(f"--peers {name!r}: not known; name a peer, or one setting as peer:setting, of: {every}")
        peer = next(peer for peer in known if peer.name == first)
        out += [(peer, variant) for variant in some if (peer, variant) not in out]
    return out
