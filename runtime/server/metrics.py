"""Figures for Prometheus. In: what the service tells as it happens, and the engine's gauges when someone looks.
Out: the text of `/metrics`.

Names follow the field: `ramet_*`, and beside them, where asked for, those that dashboards of SGLang or vLLM look for.
Labels carry a model's name and a status, never anything of a user's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
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
_GAUGES = {  # a figure of the engine → its name
    "kv_total": ("kv_slots", "KV slots, one for each token"),
    "kv_free": ("kv_slots_free", "KV slots that hold nothing"),
    "kv_cached": ("kv_slots_cached", "KV slots of prefixes that nothing uses"),
    "kv_used": ("kv_slots_used", "KV slots in use"),
    "programs": ("programs", "programs in the engine"),
    "running": ("running", "sequences that decode"),
    "waiting": ("waiting", "sequences that wait for a place"),
}
_SINCE_START = {  # figures that begin at 0 with each engine
    "steps": ("steps", "steps of the engine"),
    "step_seconds": ("step_seconds", "seconds that these took"),
    "computed_tokens": ("computed_tokens", "tokens that went through the model"),
    "evicted_tokens": ("evicted_tokens", "cached tokens given up for others"),
    "retractions": ("retractions", "sequences that gave up their place"),
    "checks": ("invariant_checks", "looks at the engine's invariants"),
    "broken": ("invariants_broken", "of these, looks that found one broken"),
}


@dataclass(frozen=True, slots=True)
class Foreign:
    """The names of another server for figures of ours: `happened` are histograms and counters by what the service
    tells, `total` counters of the engine, `now` gauges by what `Metrics` computes."""

    prefix: str
    happened: Mapping[str, str]
    total: Mapping[str, str]
    now: tuple[str, ...]


_LATENCIES = {key: name for key, (name, _) in _HISTOGRAMS.items()}
FOREIGN: Mapping[str, Foreign] = {
    "sglang": Foreign(
        "sglang:",
        {
            **{key: _LATENCIES[key] for key in ("first_token_seconds", "inter_token_seconds", "request_seconds")},
            **{key: _COUNTERS[key][0] for key in ("prompt_tokens", "cached_tokens", "generated_tokens")},
            "requests": "num_requests",
            "aborted": "num_aborted_requests",
        },
        {"evicted_tokens": "evicted_tokens"},
        (
            *("num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens"),
            *("max_total_num_tokens", "gen_throughput", "cache_hit_rate"),
        ),
    ),
    "vllm": Foreign(
        "vllm:",
        {
            **_LATENCIES,
            **{key: _COUNTERS[key][0] for key in ("prompt_tokens", "generated_tokens")},
            "requests_ok": "request_success",
        },
        {"retractions": "num_preemptions"},
        ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
    ),
}
_SAME = {  # what vLLM calls otherwise than SGLang
    "num_requests_running": "num_running_reqs",
    "num_requests_waiting": "num_queue_reqs",
    "kv_cache_usage_perc": "token_usage",
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


class EngineFigures(Collector):
    """What the engine said of itself when it was last asked (`stats`); nothing while there is none to ask."""

    def __init__(self, model: str, foreign: Foreign | None) -> None:
        self.stats: Stats | None = None
        self._model = model
        self._totals = [("ramet_" + name, stat, text) for stat, (name, text) in _SINCE_START.items()]
        if foreign is not None:
            self._totals += [(foreign.prefix + n, stat, _SINCE_START[stat][1]) for stat, n in foreign.total.items()]

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees."""
        if self.stats is None:
            return
        for stat, (name, text) in _GAUGES.items():
            gauge = GaugeMetricFamily("ramet_" + name, text, labels=["model_name"])
            gauge.add_metric([self._model], getattr(self.stats, stat))
            yield gauge
        for name, stat, text in self._totals:
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], getattr(self.stats, stat))
            yield counter


class Metrics:
    """One server's figures, in a registry of their own. `compat` names the server whose names stand beside ours."""

    def __init__(self, model: str, *, compat: str = "none") -> None:
        self._registry = CollectorRegistry()
        self._model = model
        foreign = FOREIGN.get(compat)
        self._histograms = {
            key: Durations(_named(key, name, foreign), text, model) for key, (name, text) in _HISTOGRAMS.items()
        }
        for histogram in self._histograms.values():
            self._registry.register(histogram)
        self._counters = {
            key: [self._counter(each, text) for each in _named(key, name, foreign)]
            for key, (name, text) in _COUNTERS.items()
        }
        self._requests = Counter(
            "ramet_requests", "requests that ended, by status", ["model_name", "status"], registry=self._registry
        )
        for key, text in (("requests", "requests that ended"), ("requests_ok", "requests that ended well")):
            self._counters[key] = [self._counter(each, text) for each in _named(key, "", foreign)]
        self._queued = self._gauge("ramet_queued_requests", "requests that wait in front of the engine")
        self._engine = EngineFigures(model, foreign)
        self._registry.register(self._engine)
        self._restarted = self._counter("ramet_engine_restarts", "engines started after the first")
        self._restarts = 0  # of these, those that were counted
        prefix, names = (foreign.prefix, foreign.now) if foreign is not None else ("", ())
        self._foreign = {name: self._gauge(prefix + name, "see ramet_*") for name in names}
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
            for key in ("requests", "requests_ok")[: 2 if name == "request_ok" else 1]:
                self.note(key, 1.0)
        for counter in self._counters.get(name, ()):
            counter.inc(value)

    def text(self, stats: Stats | None, *, queued: int, restarts: int, now: float) -> bytes:
        """The exposition format; `stats` None while there is no engine to ask. `now` in seconds."""
        self._queued.set(queued)
        self._restarted.inc(max(0, restarts - self._restarts))
        self._restarts = max(self._restarts, restarts)
        self._engine.stats = stats
        if stats is not None and self._foreign:
            self._translate(stats, queued, now)
        return generate_latest(self._registry)

    def _translate(self, stats: Stats, queued: int, now: float) -> None:
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
        }
        for name, gauge in self._foreign.items():
            gauge.set(values[_SAME.get(name, name)])

    def hit_rate(self) -> float:
        """Share of prompt tokens that the cache had, since the server started."""
        prompt, cached = self.prompts()
        return cached / prompt if prompt else 0.0

    def prompts(self) -> tuple[float, float]:
        """Tokens of prompts, and how many of them the cache had, since the server started."""
        read, labels = self._registry.get_sample_value, {"model_name": self._model}
        return read("ramet_prompt_tokens_total", labels) or 0.0, read("ramet_cached_tokens_total", labels) or 0.0


def _named(key: str, name: str, foreign: Foreign | None) -> list[str]:
    """The names of what the service tells under `key`: ours, where it has one, and the other server's."""
    others = [foreign.prefix + foreign.happened[key]] if foreign is not None and key in foreign.happened else []
    return (["ramet_" + name] if name else []) + others
