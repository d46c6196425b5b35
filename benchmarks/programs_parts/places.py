"""Where rungs run. In: a model, options. Out: engines and servers, started when they are first asked for.

An engine and a server with all the KV slots that they want serve all workloads; those with a small pool are ended with
the workload that asked for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving import serve

import ramet as rt
from programs_parts import llamaserver
from programs_parts.apart import Apart
from programs_parts.slashed import Slashed
from ramet.runtime.config import Config, Policy
from ramet.runtime.lower import Lowering
from ramet.runtime.models import hub
from ramet.runtime.start import load_text

ROOM = 24576  # KV slots where the pool is not to be small: no workload of scale 1 needs as many


@dataclass(slots=True)
class Setting:
    """What is run: `in_process` keeps engines in threads (counts, not times); `kv` slots of the large pools; `llama` is
    the folder of llama.cpp's server and models, None without it; `pace`: see `scenes.rows`; `steady`: see
    `session.steadily`."""

    model: str
    dtype: str
    threads: int
    in_process: bool
    kv: int = ROOM
    llama: Path | None = None
    pace: float = 1.0
    say: Callable[[str], None] = field(default=lambda text: None)
    steady: float = 0.0


class Places:
    """See the module. A context manager that ends all of them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        source = hub.resolve(setting.model)
        self._context = hub.load_spec(source).context
        self._text = load_text(Config(model=setting.model), source)
        self._all = contextlib.ExitStack()
        self._pressed = contextlib.ExitStack()  # ended by `relax`
        self._engines: dict[tuple[Policy, int], rt.Engine] = {}
        self._servers: dict[tuple[str, int], str] = {}

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None:
        self.relax()
        self._all.close()

    def relax(self) -> None:
        """End what has a small pool."""
        self._pressed.close()
        self._engines = {key: engine for key, engine in self._engines.items() if not key[1]}
        self._servers = {key: url for key, url in self._servers.items() if not key[1]}

    def tokens(self, text: str) -> int:
        """Of a text."""
        return len(self._text[0].encode(text))

    def lowering(self, seed: int) -> Lowering:
        """What an engine's client makes tokens with."""
        return Lowering(*self._text, context=self._context, seed=seed)

    def engine(self, policy: Policy = "peak", slots: int = 0) -> rt.Engine:
        """An engine with so many KV slots; 0: with room for all."""
        key = (policy, slots)
        if key not in self._engines:
            self.setting.say(f"an engine: {policy}, {slots or self.setting.kv} KV slots")
            made = rt.Engine(
                self.setting.model,
                in_process=self.setting.in_process,
                dtype=self.setting.dtype,
                threads=self.setting.threads,
                kv_tokens=slots or self.setting.kv,
                policy=policy,
            )
            self._engines[key] = (self._pressed if slots else self._all).enter_context(made)
        return self._engines[key]

    @contextlib.contextmanager
    def apart(self, policy: Policy = "peak", slots: int = 0) -> Iterator[Apart]:
        """The engine, a call at a time."""
        with contextlib.closing(Apart(self.engine(policy, slots))) as backend:
            yield backend

    @contextlib.contextmanager
    def slashed(self, slots: int = 0) -> Iterator[Slashed]:
        """The server's `/generate`."""
        with contextlib.closing(Slashed(self.server(slots))) as backend:
            yield backend

    def server(self, slots: int = 0) -> str:
        """The URL of a ramet server."""
        key = ("ramet", slots)
        if key not in self._servers:
            self.setting.say(f"a ramet server: {slots or self.setting.kv} KV slots")
            options = ["--kv-tokens", str(slots or self.setting.kv), "--threads", str(self.setting.threads)]
            served = serve(self.setting.model, [*options, "--dtype", self.setting.dtype])
            self._servers[key] = (self._pressed if slots else self._all).enter_context(served).url
        return self._servers[key]

    def llama(self, slots: int = 0) -> str:
        """The URL of llama.cpp's server. Raises `NotInstalled`."""
        key = ("llama.cpp", slots)
        if key not in self._servers:
            if self.setting.llama is None:
                raise llamaserver.NotInstalled("it is not asked for")
            self.setting.say(f"llama.cpp's server: {slots or self.setting.kv} KV slots")
            served = llamaserver.serve(
                self.setting.llama, self.setting.dtype, self.setting.threads, slots or self.setting.kv
            )
            self._servers[key] = (self._pressed if slots else self._all).enter_context(served)
        return self._servers[key]
