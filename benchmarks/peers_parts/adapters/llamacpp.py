"""llama.cpp by llama-cpp-python's C interface. In: a job (protocol.py). Out: its figures.

Compiled for this machine's instructions. Many sequences in one batch, flash attention, weights repacked for the cores
and, with the allocator's tunable, on huge pages (so not mapped from the file). A shared prefix is computed once and
given to every sequence by `llama_memory_seq_cp`, in one buffer for all sequences; without a shared prefix each sequence
has its own, as the library advises.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["llama-cpp-python==0.3.36", "numpy"]
#
# [tool.peer]
# name = "llama.cpp"
# building = {CMAKE_ARGS = "-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON", CMAKE_BUILD_PARALLEL_LEVEL = "2"}
# environment = {OMP_PROC_BIND = "true", GLIBC_TUNABLES = "glibc.malloc.hugetlb=1"}
# lacks = {shared = "shares nothing by itself among prompts given together"}
#
# [tool.peer.variants]
# Q4_0 = {bits = 4, file = "Q4_0.gguf"}
# Q4_1 = {bits = 4, file = ""}
# Q8_0 = {bits = 8, file = "Q8_0.gguf"}
# bf16 = {bits = 16, file = "BF16.gguf"}
# ///

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as c
from protocol import Ids, Job, Made, made, serve, told

MADE = {"BF16": c.LLAMA_FTYPE_MOSTLY_BF16, "Q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0}
BATCH = 2048  # tokens given at once
UBATCH = 512  # tokens computed at once


def _file(job: Job) -> bytes:
    name = job["options"]["file"]
    path = os.path.join(job["folder"], name) if name else job["weights"]["gguf"]
    return os.fsencode(path)


class Context:
    """A KV cache for some sequences: at most `sequences`, of `tokens` together."""

    def __init__(self, model: Any, threads: int, sequences: int, tokens: int, *, unified: bool) -> None:
        params = c.llama_context_default_params()
        params.n_ctx = -(-tokens // 256) * 256
        params.n_batch, params.n_ubatch = BATCH, UBATCH
        params.n_seq_max, params.kv_unified = sequences, unified
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.offload_kqv = params.op_offload = False
        self._context = c.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError(f"no context of {tokens} tokens")
        self._memory = c.llama_get_memory(self._context)
        self._batch = c.llama_batch_init(BATCH, 0, 1)
        self._greedy = c.llama_sampler_init_greedy()
        self._lengths = [0] * sequences

    def close(self) -> None:
        """Give the memory back."""
        c.llama_batch_free(self._batch)
        c.llama_sampler_free(self._greedy)
        c.llama_free(self._context)

    def read(self, prompts: dict[int, Ids]) -> dict[int, int]:
        """Append to sequences; the most likely token after each."""
        todo = [(number, ids, at) for number, ids in prompts.items() for at in range(len(ids))]
        drawn: dict[int, int] = {}
        for first in range(0, len(todo), BATCH):
            rows = todo[first : first + BATCH]
            for row, (number, ids, at) in enumerate(rows):
                self._row(row, number, ids[at], at + 1 == len(ids))
            self._batch.n_tokens = len(rows)
            if c.llama_decode(self._context, self._batch):
                raise RuntimeError("llama_decode failed")
            for row, (number, ids, at) in enumerate(rows):
                if at + 1 == len(ids):
                    drawn[number] = c.llama_sampler_sample(self._greedy, self._context, row)
        return drawn

    def decode(self, first: dict[int, int], tokens: int) -> list[Ids]:
        """`tokens` ids of each sequence, `first` among them."""
        ids, last = {number: [token] for number, token in first.items()}, first
        for _ in range(tokens - 1):
            last = self.read({number: [token] for number, token in last.items()})
            for number, token in last.items():
                ids[number].append(token)
        return [ids[number] for number in sorted(ids)]

    def share(self, sequences: int) -> None:
        """Give what sequence 0 holds to the others."""
        for number in range(1, sequences):
            c.llama_memory_seq_cp(self._memory, 0, number, -1, -1)
            self._lengths[number] = self._lengths[0]

    def _row(self, row: int, sequence: int, token: int, wanted: bool) -> None:
        batch = self._batch
        batch.token[row] = token
        batch.pos[row] = self._lengths[sequence]
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = wanted
        self._lengths[sequence] += 1


class Model:
    """The weights; a context for each call's shape."""

    def __init__(self, job: Job) -> None:
        params = c.llama_model_default_params()
        params.use_mmap = False  # a file's pages cannot be huge
        params.use_extra_bufts = True
        self._threads = job["threads"]
        self.model = c.llama_model_load_from_file(_file(job), params)
        if not self.model:
            raise FileNotFoundError(_file(job))
        self._context: Context | None = None
        self._shape: tuple[int, int, bool] | None = None

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """A sequence for each."""
        context = self.context(len(prompts), len(prompts[0]["ids"]) + tokens, unified=False)
        first = context.read({number: prompt["ids"] for number, prompt in enumerate(prompts)})
        return made(context.decode(first, tokens))

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """Sequence 0 reads the prefix; all share it."""
        each = len(own[0]["ids"]) + tokens
        context = self.context(len(own), len(prefix["ids"]) + len(own) * each, unified=True)
        context.read({0: prefix["ids"]})
        context.share(len(own))
        return made(context.decode(context.read({number: part["ids"] for number, part in enumerate(own)}), tokens))

    def forget(self) -> None:
        """The next call has a new context."""
        if self._context is not None:
            self._context.close()
        self._context = None

    def context(self, sequences: int, tokens: int, *, unified: bool) -> Context:
        """`tokens`: of each sequence where each has its own buffer, else of all."""
        self.forget()
        total = tokens if unified else sequences * (-(-tokens // 256) * 256)
        self._context = Context(self.model, self._threads, sequences, total, unified=unified)
        return self._context


def start(job: Job) -> None:
    """Text in, the first token's text out."""
    model = Model(job)
    vocabulary, text = c.llama_model_get_vocab(model.model), job["start"].encode()
    room = (c.llama_token * (len(text) + 8))()
    count = c.llama_tokenize(vocabulary, text, len(text), room, len(room), True, False)
    context = model.context(1, 512, unified=False)
    piece = ctypes.create_string_buffer(64)
    c.llama_token_to_piece(vocabulary, context.read({0: list(room[:count])})[0], piece, 64, 0, False)
    told()


def prepare(job: Job) -> None:
    """BF16 from the model's own file, the other formats from that: the weights that all peers have."""
    for name, kind in MADE.items():
        params = c.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = kind, job["threads"], name == "BF16"
        target = os.path.join(job["folder"], f"{name}.gguf")
        source = job["weights"]["gguf"] if name == "BF16" else os.path.join(job["folder"], "BF16.gguf")
        if c.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
            raise RuntimeError(f"llama.cpp cannot make {target}")


if __name__ == "__main__":
    c.llama_log_set(quiet := c.llama_log_callback(lambda level, text, data: None), ctypes.c_void_p())
    c.llama_backend_init()
    serve(prepare, start, Model, c.__version__)
