"""What call sites did before: how long their texts got, as high quantiles.

In: lengths in tokens, by call site, as operations end. Out: what to expect of the next one. A call site is a place in a
program's text: the program's name and the operation's path without the numbers of branches, so that all branches of a
fork, and all runs of a function, are one site.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque

Site = tuple[str, str]  # the program's name, and a path whose branches have no numbers

DEFAULT = 128  # tokens of a generation without a limit, before any has ended
VALUE = 64  # tokens of a value from outside, before any has come
SURE = 8  # lengths of a site that must have been seen before they count for more than the operation's own limit
_BRANCH = re.compile(r"\.b\d+")


def site_of(program: str, path: str) -> Site:
    """The call site of an operation `path` of a program of this name."""
    return (program, _BRANCH.sub(".b", path) if ".b" in path else path)


class Lengths:
    """Quantiles of the last `window` lengths of each of at most `sites` sites; the site that was told of least recently
    is forgotten first."""

    def __init__(self, sites: int = 4096, window: int = 64, quantile: float = 0.9) -> None:
        self._seen: OrderedDict[Site, deque[int]] = OrderedDict()
        self._typical: dict[Site, int] = {}  # of sites that did not change since
        self._sites = sites
        self._window = window
        self._quantile = quantile

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, site: Site, length: int) -> None:
        """Record a length in tokens."""
        seen = self._seen.get(site)
        if seen is None:
            seen = self._seen[site] = deque(maxlen=self._window)
            if len(self._seen) > self._sites:
                gone, _ = self._seen.popitem(last=False)
                self._typical.pop(gone, None)
        else:
            self._seen.move_to_end(site)
        seen.append(length)
        self._typical.pop(site, None)

    def typical(self, site: Site, least: int = 1) -> int | None:
        """A length that few of the site's texts exceed; None when fewer than `least` have been seen."""
        seen = self._seen.get(site)
        if seen is None or len(seen) < least:
            return None
        found = self._typical.get(site)
        if found is None:
            found = self._typical[site] = sorted(seen)[int(self._quantile * (len(seen) - 1) + 0.5)] + 1
        return found


class Learned:
    """What an engine has learned of call sites: `calls`, the lengths of what was generated; `values`, those of values
    that came from outside; `growth`, how much longer a sequence was at its end than when the call began."""

    def __init__(self) -> None:
        self.calls = Lengths()
        self.values = Lengths()
        self.growth = Lengths()

    def call(self, site: Site, most: int, limit: int | None) -> int:
        """Tokens to expect of a generation that may have `most`, of which its author said `limit` (None: nothing).
        Programs without a name share their sites with strangers: what those did counts for less than a limit."""
        seen = self.calls.typical(site, SURE if limit is not None else 1) if limit is None or site[0] else None
        if seen is None:
            seen = DEFAULT if limit is None else most
        return max(1, min(seen, most))

    def value(self, site: Site) -> int:
        """Tokens to expect of a value that is to come from outside."""
        return self.values.typical(site) or VALUE
