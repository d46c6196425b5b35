"""OpenVINO GenAI. In: a job (protocol.py). Out: its figures.

`ContinuousBatchingPipeline` with prefix caching, threads pinned by the library, arithmetic in bfloat16 where the cores
have it; weights of 8 and 4 bits by NNCF, as `optimum-cli export openvino` makes them.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "openvino-genai==2026.4.*", "openvino-tokenizers[transformers]==2026.4.*", "optimum-intel", "nncf", "torch",
# ]
#
# [tool.peer]
# name = "openvino"
# without = ["torchvision"]  # which optimum-intel asks for, and which must be of the very build of torch
# environment = {HF_HUB_OFFLINE = "1", GLIBC_TUNABLES = "glibc.malloc.hugetlb=1"}
#
# [tool.peer.variants]
# bf16 = {bits = 16, format = "fp16"}
# int8 = {bits = 8, format = "int8"}
# int4 = {bits = 4, format = "int4"}
# ///

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from protocol import Job, Made, made, serve, told

FORMATS = ("fp16", "int8", "int4")


def _folder(job: Job) -> str:
    return os.path.join(job["folder"], job["options"]["format"])


class Pipeline:
    """The pipeline and what is on."""

    def __init__(self, job: Job) -> None:
        import openvino_genai as genai

        self._genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 3  # GB
        scheduler.max_num_seqs = 256
        scheduler.max_num_batched_tokens = 2048
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if "bf16" in _flags():
            properties["INFERENCE_PRECISION_HINT"] = "bf16"
        self.pipeline = genai.ContinuousBatchingPipeline(_folder(job), scheduler, "CPU", properties)

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """In the order of the prompts."""
        import numpy as np
        import openvino as ov

        config = self._config(tokens)
        ids = [ov.Tensor(np.array([prompt["ids"]], np.int64)) for prompt in prompts]
        found = self.pipeline.generate(ids, [config] * len(ids))
        return made([list(each.m_generation_ids[0]) for each in found])

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """The prefix is sent first, so that its blocks are found by the others."""
        self.generate([prefix], 1)
        return self.generate([{"ids": prefix["ids"] + each["ids"]} for each in own], tokens)

    def forget(self) -> None:
        """There is no call for it; prompts of different calls have nothing in common, and the cache holds few."""

    def _config(self, tokens: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        return config


def _flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def start(job: Job) -> None:
    """Text in, the first token's text out."""
    pipeline = Pipeline(job)
    handle = pipeline.pipeline.add_request(0, job["start"], pipeline._config(2))
    while handle.get_status() == pipeline._genai.GenerationStatus.RUNNING:
        pipeline.pipeline.step()
        if handle.can_read():
            (found,) = handle.read().values()
            pipeline.pipeline.get_tokenizer().decode(list(found.generated_ids))
            told()
            break


def prepare(job: Job) -> None:
    """Every format: the library's own exporter, one process each."""
    for name in FORMATS:
        place = os.path.join(job["folder"], name)
        options = ["--weight-format", name] + (["--group-size", "64", "--sym"] if name == "int4" else [])
        exporter = os.path.join(os.path.dirname(sys.executable), "optimum-cli")
        command = [exporter, "export", "openvino", "--model", job["weights"]["hf"]]
        subprocess.run([*command, "--task", "text-generation-with-past", *options, place], check=True, stdout=2)


def _version() -> str:
    from importlib.metadata import version

    return version("openvino-genai")


if __name__ == "__main__":
    serve(prepare, start, Pipeline, _version())
