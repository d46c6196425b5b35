"""transformers. In: a job (protocol.py). Out: its figures.

`generate` with a static batch, bfloat16, SDPA; a shared prefix is computed once and its cache repeated, as the
library's documentation has it. The setting "continuous batching" gives the prompts to `generate_batch` instead.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers==5.23.*", "numpy", "accelerate", "psutil"]
#
# [tool.peer]
# name = "transformers"
# environment = {HF_HUB_OFFLINE = "1", OMP_PROC_BIND = "true", GLIBC_TUNABLES = "glibc.malloc.hugetlb=1"}
# lacks = {shared = "generate shares nothing among prompts given together"}
#
# [tool.peer.variants]
# bf16 = {bits = 16}
#
# [tool.peer.variants.bf16-continuous]
# bits = 16
# optional = true
# continuous = true
# environment = {OMP_PROC_BIND = "false"}  # its loop is a thread of its own: bound, a forward takes minutes
# ///

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from protocol import Job, Made, made, serve, told

_NO_END = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}  # an id that no token has


class Generate:
    """`model.generate`."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job["threads"])
        self._model = transformers.AutoModelForCausalLM.from_pretrained(job["weights"]["hf"], dtype=torch.bfloat16)
        self._model.generation_config = transformers.GenerationConfig(**_NO_END)

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """Prompts of one length: no padding."""
        ids = torch.tensor([prompt["ids"] for prompt in prompts])
        return self._made(ids, tokens, None)

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """One cache of the prefix, repeated for every branch."""
        first = torch.tensor([prefix["ids"]])
        with torch.inference_mode():
            cache = self._model(first, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(own))
        ids = torch.tensor([prefix["ids"] + each["ids"] for each in own])
        return self._made(ids, tokens, cache)

    def forget(self) -> None:
        """Nothing is remembered."""

    def _made(self, ids: torch.Tensor, tokens: int, cache: Any) -> Made:
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, past_key_values=cache
            )
        return made(out[:, ids.shape[1] :].tolist())


class Continuous(Generate):
    """`model.generate_batch`: paged attention, continuous batching, by a manager for each call."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        config = transformers.generation.configuration_utils.ContinuousBatchingConfig()
        pages = -(-job["longest"] // config.page_size)
        # what it would take by itself is most of the machine's memory
        config.num_blocks, config.max_batch_tokens = job["sequences"] * pages + 8, 2048
        self._config = config

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """In the order of the prompts."""
        config = transformers.GenerationConfig(**_NO_END, max_new_tokens=tokens)
        found = self._model.generate_batch(
            inputs=[prompt["ids"] for prompt in prompts],
            generation_config=config,
            continuous_batching_config=self._config,
            progress_bar=False,
        )
        order = sorted(found, key=lambda name: int(name.rpartition("_")[2]))
        return made([found[name].generated_tokens for name in order])

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """Whole prompts: the manager of another call would know nothing of a prefix that was sent first."""
        return self.generate([{"ids": prefix["ids"] + each["ids"]} for each in own], tokens)


def opened(job: Job) -> Generate:
    """The model, loaded."""
    return Continuous(job) if job["options"].get("continuous") else Generate(job)


def start(job: Job) -> None:
    """Text in, the first token's text out."""

    class Told(transformers.generation.streamers.BaseStreamer):
        """Called with the prompt, then with each token."""

        calls = 0

        def put(self, value: Any) -> None:
            self.calls += 1
            if self.calls == 2:
                tokenizer.decode(value)
                told()

        def end(self) -> None:
            """Nothing is kept back."""

    model = Generate(job)._model
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["weights"]["hf"])
    with torch.inference_mode():
        model.generate(**tokenizer(job["start"], return_tensors="pt"), max_new_tokens=2, streamer=Told())


def prepare(job: Job) -> None:
    """The directory serves as it is."""


if __name__ == "__main__":
    serve(prepare, start, opened, transformers.__version__)
