"""The commands of `ramet` that are about programs: `ramet chat`, `ramet run`. Imported when one of them runs.

They need a terminal's libraries (rich, httpx, pydantic), which the language itself does not.
"""

from __future__ import annotations

from ramet.frontend.errors import RametError


class WrongUsage(RametError):
    """A command line that cannot be meant; exit status 2."""
