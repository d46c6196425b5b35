"""Figures for Prometheus. In: what the service tells as it happens, and the engine's gauges when someone looks.
Out: the text of `/metrics`.

Names follow the field: `ramet_*`, and beside them, where asked for, the names that dashboards of SGLang look for.
Labels carry a model's name and a status, never anything of a user's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ramet.runtime.messages import Stats

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_HISTOGRAMS = {
    "first_token_seconds": ("time_to_first_token_seconds", "from the request to its first token"),
    "inter_token_seconds": ("inter_token_latency_seconds", "between two arrivals of tokens of one request"),
    "queue_seconds": ("request_queue_time_seconds", "from the request to its admission"),
    "request_seconds": ("e2e_request_latency_seconds", "from the request to its end"),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "tokens of prompts"),
    "cached_tokens": ("cached_tokens", "of these, found in the prefix cache"),
    "generated_tokens": ("generation_tokens", "tokens of answers, sampled or forced"),
    "request_retried": ("retried_requests", "requests run again after the engine was lost"),
    "aborted": ("aborted_requests", "requests whose client went away"),
    "engine_lost": ("engine_lost", "engines that ended"),
    "engine_stalled": ("engine_stalled", "engines that were ended because they made no step"),
}
_GAUGES = {
    "kv_total": "KV slots",
    "kv_free": "KV slots that hold nothing",
    "kv_cached": "KV slots of prefixes that nothing uses",
    "kv_used": "KV slots in use",
    "programs": "programs in the engine",
    "running": "sequences that decode",
    "waiting": "sequences that wait for a place",
    "steps": "steps since the engine started",
    "computed_tokens": "tokens that went through the model since the engine started",
    "evicted_tokens": "cached tokens given up for others since the engine started",
    "retractions": "sequences that gave up their place since the engine started",
}


class Durations(Collector):
    """A histogram of seconds under one or several `names`. The library's own takes locks and walks its buckets at each
    observation, and there is one per token; here one thread observes."""

    def __init__(self, names: Sequence[str], text: str, model: str) -> None:
        self._names = tuple(names)
        self._text = text
        self._model = model
        self._counts = [0] * (len(_LATENCY) + 1)  # of each bucket alone
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(_LATENCY, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape sees: buckets that include those below them."""
        ends = [*map(floatToGoString, _LATENCY), "+Inf"]
        buckets = [(end, float(count)) for end, count in zip(ends, accumulate(self._counts), strict=True)]
        for name in self._names:
            family = HistogramMetricFamily(name, self._text, labels=["model_name"])
            family.add_metric([self._model], buckets, self._sum)
            yield family


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self, model: str, *, compat: bool) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._prefixes = ("ramet_", "sglang:") if compat else ("ramet_",)
        self._histograms = {
            key: Durations([prefix + name for prefix in self._prefixes], text, model)
            for key, (name, text) in _HISTOGRAMS.items()
        }
        for histogram in self._histograms.values():
            self._registry.register(histogram)
        self._counters = {
            key: [self._counter(prefix + name, text) for prefix in self._prefixes]
            for key, (name, text) in _COUNTERS.items()
        }
        self._requests = Counter(
            "ramet_requests", "requests that ended, by status", ["model_name", "status"], registry=self._registry
        )
        self._others = [self._counter(p + "num_requests", "requests that ended") for p in self._prefixes[1:]]
        self._gauges = {name: self._gauge("ramet_" + name, text) for name, text in _GAUGES.items()}
        self._queued = self._gauge("ramet_queued_requests", "requests that wait in front of the engine")
        self._restarts = self._gauge("ramet_engine_restarts", "engines started after the first")
        self._aliases = {name: self._gauge("sglang:" + name, "see ramet_*") for name in _ALIASES} if compat else {}
        self._seen = (0.0, 0)  # when gauges were last taken, and tokens generated by then

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self._registry).labels(self._model)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["model_name"], registry=self._registry).labels(self._model)

    def note(self, name: str, value: float) -> None:
        """Something happened (`Service.on_event`)."""
        histogram = self._histograms.get(name)
        if histogram is not None:
            histogram.observe(value)
            return
        if name in ("request_ok", "request_failed"):
            self._requests.labels(self._model, "200" if name == "request_ok" else str(int(value))).inc()
            for counter in self._others:
                counter.inc()
        for counter in self._counters.get(name, ()):
            counter.inc(value)

    def text(self, stats: Stats | None, *, queued: int, restarts: int, now: float) -> bytes:
        """The exposition format; `stats` None while there is no engine to ask. `now` in seconds."""
        self._queued.set(queued)
        self._restarts.set(restarts)
        if stats is not None:
            for name, gauge in self._gauges.items():
                gauge.set(getattr(stats, name))
            if self._aliases:
                self._alias(stats, queued, now)
        return generate_latest(self._registry)

    def _alias(self, stats: Stats, queued: int, now: float) -> None:
        since, generated = self._seen
        self._seen = (now, stats.generated_tokens)
        seconds = now - since
        values = {
            "num_running_reqs": stats.running,
            "num_queue_reqs": stats.waiting + queued,
            "token_usage": stats.kv_used / max(1, stats.kv_total),
            "num_used_tokens": stats.kv_used,
            "max_total_num_tokens": stats.kv_total,
            "gen_throughput": max(0, stats.generated_tokens - generated) / seconds if since and seconds > 0 else 0.0,
            "cache_hit_rate": self.hit_rate(),
            "evicted_tokens": stats.evicted_tokens,
        }
        for name, value in values.items():
            self._aliases[name].set(value)

    def hit_rate(self) -> float:
        """Share of prompt tokens that the cache had, since the server started."""
        prompt, cached = self.prompts()
        return cached / prompt if prompt else 0.0

    def prompts(self) -> tuple[float, float]:
        """Tokens of prompts, and how many of them the cache had, since the server started."""
        read, labels = self._registry.get_sample_value, {"model_name": self._model}
        return read("ramet_prompt_tokens_total", labels) or 0.0, read("ramet_cached_tokens_total", labels) or 0.0


_ALIASES = (
    "num_running_reqs",
    "num_queue_reqs",
    "token_usage",
    "num_used_tokens",
    "max_total_num_tokens",
    "gen_throughput",
    "cache_hit_rate",
    "evicted_tokens",
)
