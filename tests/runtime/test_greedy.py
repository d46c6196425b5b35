"""The real model against transformers: the same greedy tokens in float32, logits close, bfloat16 no worse than its own.

Weights come through our GGUF loader on both sides (its equality with other readers is tested in tests/runtime/models).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ramet.frontend.ir import Sampling
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import load_weights
from ramet.runtime.models.spec import Spec
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.runner import TorchRunner
from ramet.runtime.text import Tokenizer

from .driving import Drive

pytestmark = pytest.mark.model
PROMPTS, TOKENS = 200, 128
NEAR_TIE = 1e-4  # nats: where transformers' two best tokens are closer than this, either is right
NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
NAMES |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
NAMES |= {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
SUBJECTS = [
    "the sea",
    "a small town",
    "prime numbers",
    "bread",
    "old trains",
    "the moon",
    "teaching",
    "rivers",
    "glass",
    "wind",
]
OPENINGS = [
    "Write a short story about {}.",
    "The history of {} begins with",
    "Q: What should everyone know about {}?\nA:",
    "def describe():\n    # {}\n    return",
    "A poem on {}:\n\n",
    "Three facts about {}: 1.",
    "Dear editor, about {} I must say that",
    "<|im_start|>user\nTell me about {}.<|im_end|>\n<|im_start|>assistant\n",
    "{} {} {} 12, 13, 14,",
    "In the end, {} was only",
    '{{"topic": "{}", "summary": "',
    "Übersetze: {} →",
    "Once upon a time there was {}, and",
    "Compare {} with its opposite.",
    "The price of {} rose by 3.5 % in",
    "- {}\n- ",
    "Why {}? Because",
    "SELECT * FROM facts WHERE topic = '{}'",
    "Explain {} to a child in two sentences.",
    "My opinion of {} changed when",
]


@pytest.fixture(scope="module")
def source() -> hub.ModelSource:
    return hub.resolve("default")


@pytest.fixture(scope="module")
def spec(source: hub.ModelSource) -> Spec:
    return hub.load_spec(source)


@pytest.fixture(scope="module")
def tokenizer(source: hub.ModelSource) -> Tokenizer:
    return load_tokenizer(source)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    texts = [opening.replace("{}", subject) for opening in OPENINGS for subject in SUBJECTS]
    assert len(set(texts)) == PROMPTS
    return [tokenizer.encode_template(text) for text in texts]


def reference(source: hub.ModelSource, spec: Spec, dtype: torch.dtype) -> LlamaForCausalLM:
    """transformers' model with these weights."""
    config = LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.eps,
        rope_theta=spec.rope.theta,
        max_position_embeddings=spec.context,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    weights = load_weights(source, spec, torch.float32)
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm"]}
    state["lm_head.weight"] = weights["embed"]
    for n in range(spec.layers):
        state |= {f"model.layers.{n}.{theirs}.weight": weights[f"layers.{n}.{ours}"] for ours, theirs in NAMES.items()}
    model.load_state_dict(state, strict=True)
    return model.to(dtype).eval()


def ours(source: hub.ModelSource, spec: Spec, dtype: torch.dtype) -> TorchRunner:
    decoder = Decoder(spec, load_weights(source, spec, dtype), "cpu", dtype)
    return TorchRunner(decoder, capacity=40_000, rows=256, context=1024, threads=2)


@pytest.fixture(scope="module")
def greedy(source: hub.ModelSource, spec: Spec, prompts: list[list[int]]) -> list[list[int]]:
    """What our engine generates in float32 for all prompts."""
    return generated(source, spec, prompts)


def generated(source: hub.ModelSource, spec: Spec, prompts: list[list[int]]) -> list[list[int]]:
    """What our engine generates in float32, `prompts` at once."""
    drive = Drive(ours(source, spec, torch.float32))
    sampling = Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    names = [drive.completion(prompt, sampling) for prompt in prompts]
    drive.run()
    return [drive[name, "0.1"].tokens for name in names]


@pytest.fixture(scope="module")
def exact(source: hub.ModelSource, spec: Spec) -> Iterator[LlamaForCausalLM]:
    torch.set_num_threads(2)
    with torch.inference_mode():
        yield reference(source, spec, torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("every", [15, pytest.param(1, marks=pytest.mark.nightly)])
def test_greedy_tokens_are_those_of_transformers(
    source: hub.ModelSource, spec: Spec, exact: LlamaForCausalLM, prompts: list[list[int]], every: int
) -> None:
    """Every one of 128 tokens of 14 prompts (nightly: 200) is the argmax of transformers' logits after the same prefix:
    by induction, what its greedy `generate` gives. (One pass over prompt and output computes all these logits;
    `generate` itself: nightly.)"""
    ties, some = 0, prompts[::every]
    for prompt, output in zip(some, generated(source, spec, some), strict=True):
        assert len(output) == TOKENS
        logits = exact(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1)
        wrong = torch.nonzero(best.indices[:, 0] != torch.tensor(output)).flatten().tolist()
        for at in wrong:
            assert best.indices[at, 1] == output[at]
            assert best.values[at, 0] - best.values[at, 1] < NEAR_TIE
            ties += 1
    assert ties <= 2


@pytest.mark.nightly
@torch.inference_mode()
def test_greedy_tokens_are_those_of_generate(
    source: hub.ModelSource, spec: Spec, exact: LlamaForCausalLM, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """`generate` on batches of prompts of one length: no padding, which would be another computation. A sequence may
    part from ours only at a tie that float32 cannot decide (seen: one of 200, where the two best differ by 8e-7)."""
    parted: list[tuple[int, int]] = []
    for length in sorted({len(prompt) for prompt in prompts}):
        which = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[i] for i in which])
        theirs = exact.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            pad_token_id=0,
            eos_token_id=None,
        )[:, length:].tolist()
        for row, i in zip(theirs, which, strict=True):
            parted += [(i, at) for at in range(TOKENS) if row[at] != greedy[i][at]][:1]
    assert len(parted) <= 2
    judge = reference(source, spec, torch.float64)
    for i, at in parted:
        best = judge(torch.tensor([prompts[i] + greedy[i][:at]])).logits[0, -1].topk(2)
        assert greedy[i][at] in best.indices
        assert best.values[0] - best.values[1] < NEAR_TIE


def logits_of(runner: TorchRunner, prompts: list[list[int]]) -> np.ndarray:
    """Log-probabilities of all tokens after each prompt, read as scores of one-token choices: [prompts, probes]."""
    from ramet.runtime import messages as m

    drive = Drive(runner)
    choices = tuple((token,) for token in range(3, 49152, 61))
    names = [
        drive.program(m.Append("0.0", "0", (tuple(p),)), m.Choose("0.1", "0", choices, "token_length_normalized"))
        for p in prompts
    ]
    drive.run()
    return np.array([drive[name, "0.1"].logprobs for name in names])


@torch.inference_mode()
def test_logprobs_are_within_1e_4_in_float32_and_bfloat16_errs_no_more_than_1_5_times_their_own(
    source: hub.ModelSource, spec: Spec, exact: LlamaForCausalLM, prompts: list[list[int]]
) -> None:
    some = prompts[::15]
    probes = torch.arange(3, 49152, 61)

    def theirs(model: LlamaForCausalLM) -> np.ndarray:
        rows = [model(torch.tensor([p])).logits[0, -1].double().log_softmax(-1)[probes] for p in some]
        return torch.stack(rows).numpy()

    truth = theirs(exact)
    single = logits_of(ours(source, spec, torch.float32), some)
    assert np.abs(single - truth).max() <= 1e-4 * np.abs(truth).max()
    half = logits_of(ours(source, spec, torch.bfloat16), some)
    peer = theirs(reference(source, spec, torch.bfloat16))
    error, allowed = np.sqrt(np.mean((half - truth) ** 2)), np.sqrt(np.mean((peer - truth) ** 2))
    assert error <= 1.5 * allowed
