"""The text of `/metrics`: Prometheus' conventions for names, and exactly the names of others that are promised."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ramet.runtime.messages import Stats
from ramet.runtime.server.metrics import FOREIGN, Metrics

STATS = Stats(kv_total=100, kv_free=70, kv_cached=10, kv_used=20, running=3, waiting=2, steps=9, evicted_tokens=5)
SGLANG = {
    *("num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens", "max_total_num_tokens"),
    *("gen_throughput", "cache_hit_rate", "prompt_tokens_total", "generation_tokens_total", "cached_tokens_total"),
    *("num_requests_total", "num_aborted_requests_total", "evicted_tokens_total"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
}
VLLM = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total"),
    *("generation_tokens_total", "num_preemptions_total", "request_success_total", "time_to_first_token_seconds"),
    *("inter_token_latency_seconds", "request_queue_time_seconds", "e2e_request_latency_seconds"),
}


def scraped(compat: str = "sglang", stats: Stats | None = STATS, restarts: int = 0) -> str:
    """What a scrape sees after one request of each kind of end."""
    metrics = Metrics("m", compat=compat)
    for name, value in (("request_ok", 1.0), ("request_failed", 429), ("prompt_tokens", 7.0), ("queue_seconds", 0.5)):
        metrics.note(name, value)
    return metrics.text(stats, queued=4, restarts=restarts, now=1.0).decode()


def values(text: str) -> dict[str, float]:
    """The samples that have no label but the model's, by name."""
    families = text_string_to_metric_families(text)
    return {s.name: s.value for f in families for s in f.samples if set(s.labels) == {"model_name"}}


def names_of(text: str, prefix: str) -> set[str]:
    """The names under a prefix, as a query has them."""
    families = [f for f in text_string_to_metric_families(text) if f.name.startswith(prefix)]
    families = [f for f in families if not f.name.endswith("_created")]
    return {f.name.removeprefix(prefix) + ("_total" if f.type == "counter" else "") for f in families}


def against_convention(text: str) -> list[str]:
    """What Prometheus' linter would say: names without their kind or unit, missing words, names that come twice."""
    found, seen = [], set[str]()
    for line in text.splitlines():
        words = line.split()
        if line.startswith("# TYPE"):
            name, kind = words[2], words[3]
            found += [f"{name}: twice"] if name in seen else []
            seen.add(name)
            if (kind == "counter") != name.endswith("_total") and not name.endswith("_created"):
                found.append(f"{name}: a {kind}")
            if kind == "histogram" and not name.endswith("_seconds"):
                found.append(f"{name}: no unit")
            if any(part in ("ms", "millis", "us", "kb", "percent") for part in name.split("_")):
                found.append(f"{name}: not a base unit")
        elif line.startswith("# HELP") and len(words) < 4:
            found.append(f"{words[2]}: no help")
    return found


@pytest.mark.parametrize("compat", ["none", *FOREIGN])
def test_names_follow_the_convention(compat: str) -> None:
    text = scraped(compat)
    assert against_convention(text) == [] and len(names_of(text, "ramet_")) > 25


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# TYPE ramet_steps_total counter", "# TYPE ramet_steps_total gauge", "ramet_steps_total: a gauge"),
        ("# TYPE ramet_requests_total", "# TYPE ramet_requests", "ramet_requests: a counter"),
        ("ramet_time_to_first_token_seconds", "ramet_time_to_first_token_ms", "no unit"),
        ("# HELP ramet_running sequences that decode", "# HELP ramet_running", "no help"),
        ("# TYPE ramet_waiting", "# TYPE ramet_running", "twice"),
    ],
)
def test_control_a_name_against_the_convention_is_seen(old: str, new: str, fault: str) -> None:
    text = scraped()
    assert old in text
    assert any(fault in each for each in against_convention(text.replace(old, new)))


@pytest.mark.parametrize(("compat", "want"), [("sglang", SGLANG), ("vllm", VLLM)])
def test_the_names_of_another_server_are_those_that_it_has(compat: str, want: set[str]) -> None:
    text = scraped(compat)
    assert names_of(text, f"{compat}:") == want
    others = set(FOREIGN) - {compat}
    assert not any(names_of(text, f"{other}:") for other in others)


def test_the_same_figure_under_either_name() -> None:
    sglang, vllm = values(scraped("sglang")), values(scraped("vllm"))
    assert sglang["sglang:token_usage"] == vllm["vllm:kv_cache_usage_perc"] == 0.2
    assert sglang["sglang:num_queue_reqs"] == vllm["vllm:num_requests_waiting"] == 6
    assert sglang["sglang:num_requests_total"] == 2 and vllm["vllm:request_success_total"] == 1
    assert sglang["sglang:evicted_tokens_total"] == sglang["ramet_evicted_tokens_total"] == 5
    assert vllm["vllm:request_queue_time_seconds_count"] == vllm["ramet_request_queue_time_seconds_count"] == 1
    assert sglang["ramet_kv_slots"] == sum(sglang[f"ramet_kv_slots_{s}"] for s in ("free", "cached", "used"))


def test_without_an_engine_nothing_is_said_of_it() -> None:
    known, gone = values(scraped()), values(scraped(stats=None, restarts=1))
    assert known["ramet_steps_total"] == 9 and "ramet_steps_total" not in gone and "ramet_kv_slots" not in gone
    assert (known["ramet_engine_restarts_total"], gone["ramet_engine_restarts_total"]) == (0, 1)
    assert gone["ramet_queued_requests"] == 4
