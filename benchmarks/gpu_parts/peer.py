"""transformers' continuous batching on the offline mix, in a process of its own, in the same run.

In: a model's name. Out: its tokens per second beside ours: the same prompts, the same output lengths, greedy, random
weights of the same shape, bfloat16, its own choice of everything else (SDPA where FlashAttention is not installed).
What does not finish in time is cut, and counted up to there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from gpu_parts import floors
from gpu_parts.engine import mix_seconds
from gpu_parts.floors import Request
from gpu_parts.models import Scale, spec_of
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.runtime.models.spec import Spec

SECONDS = 60.0  # that the peer may compute, if there is time
LEAST = 15.0
START = 45.0  # that it may take to start
TWICE = 2.0


def run(session: Session, name: str) -> None:
    """Ours was measured with the mix, or is now; then the peer has the device to itself."""
    spec = spec_of(name, session.scale)
    seconds = mix_seconds(session, name)
    tokens = sum(request.tokens for request in floors.mix(*session.scale.mix, spec.vocab))
    session.kept.drop()
    found = _ask(session, name, max(LEAST, min(SECONDS, session.left - START)))
    ours, theirs = tokens / seconds, found["tokens"] / found["seconds"]
    label = f"{name}, {session.scale.mix[0]} requests"
    note = f"peer: transformers {found['version']} generate_batch, {found['attention']}"
    if session.peer_options != "{}":
        note += f", {session.peer_options}"
    if found["tokens"] < tokens:
        note += f", cut after {found['seconds']:.0f} s and {found['tokens']:,} tokens"
    session.add(Row("peer", label, ours, "tok/s", None, theirs, ours / theirs, Target(least=TWICE), note))


def _ask(session: Session, name: str, seconds: float) -> dict[str, Any]:
    script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "gpu.py")
    command = [sys.executable, "-P", script, "--peer", name, "--peer-seconds", str(seconds)]
    command += ["--peer-options", session.peer_options] + ["--dry-run"] * session.scale.toy
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds + START + 30, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the peer gave nothing (status {done.returncode}): {(done.stderr or done.stdout)[-1500:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def serve(name: str, scale: Scale, seconds: float, options: Mapping[str, Any]) -> None:
    """The peer's process: print one line of JSON and end, whatever threads it still has."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # no attempt to fetch another attention
    spec = spec_of(name, scale)
    found = generate(spec, floors.mix(*scale.mix, spec.vocab), scale, seconds, options)
    print(json.dumps(found), flush=True)
    os._exit(0)


def generate(
    spec: Spec, requests: list[Request], scale: Scale, most: float, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Tokens and seconds of the peer, without its start; at most `most` seconds. `given`: fields of its
    `ContinuousBatchingConfig`."""
    import torch
    import transformers
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    device = "cpu" if scale.toy else "cuda"
    model = _model(spec, device, torch.float32 if scale.toy else torch.bfloat16)
    options = dict(given)
    if "auto_switch_to_flash" in ContinuousBatchingConfig.__dataclass_fields__:  # 5.18 and later
        options["auto_switch_to_flash"] = False
    else:
        model.set_attn_implementation("paged|sdpa")
    if scale.toy:
        options |= {"num_blocks": 8, "max_batch_tokens": 64}
    longest = max(request.tokens for request in requests)
    hints = WorkloadHints(max(len(request.prompt) for request in requests), longest, len(requests))
    generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=longest)
    with model.continuous_batching_context_manager(
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(**options),
        workload_hints=hints,  # as generate_batch gives them
        timeout=5,
    ) as manager:
        _work(manager, [Request(request.prompt, 2) for request in requests[:4]], START)
        began = time.perf_counter()
        tokens = _work(manager, requests, most)
        seconds = time.perf_counter() - began
        attention = model.config._attn_implementation
        found = {"tokens": tokens, "seconds": seconds, "attention": attention, "version": transformers.__version__}
        if tokens < sum(request.tokens for request in requests):
            print(json.dumps(found), flush=True)
            os._exit(0)  # it would finish everything before it lets go
    return found


def _model(spec: Spec, device: str, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    kind = Qwen3Config if spec.qk_norm else LlamaConfig
    config = kind(
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab,
        max_position_embeddings=8192,
        rms_norm_eps=spec.eps,
        tie_word_embeddings=spec.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def _work(manager: Any, requests: list[Request], seconds: float) -> int:
    """Tokens made until all are done, or time is up."""
    for request in requests:
        manager.add_request(list(request.prompt), max_new_tokens=request.tokens)
    began, done, tokens = time.perf_counter(), 0, 0
    while done < len(requests) and time.perf_counter() - began < seconds:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("transformers' generation thread ended")
        if result is not None and result.is_finished():
            if result.error:
                raise RuntimeError(f"transformers: {result.error}")
            done, tokens = done + 1, tokens + len(result.generated_tokens)
    if done < len(requests):
        active = manager.batch_processor.scheduler.active_requests
        tokens += sum(len(state.generated_tokens) for state in list(active.values()))
    return tokens
