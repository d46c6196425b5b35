"""Specs from Hugging Face configs (as transformers writes them, and as published files look) and from GGUF metadata."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf_spec import from_gguf, llama3_factors, rope_from_factors
from ramet.runtime.models.spec import Rope, Spec, from_hf

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def published(**changes: Any) -> dict[str, Any]:
    """A config.json in the style of transformers 4."""
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **SIZES, **changes}


def written(config: Any, tmp_path: Any) -> dict[str, Any]:
    """The config.json that the installed transformers writes."""
    config.save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def hf_configs() -> list[Any]:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    def rope(kind: str, **more: Any) -> dict[str, Any]:
        return {"rope_type": kind, "rope_theta": 5000.0} | more

    return [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5),
        LlamaConfig(**SIZES, head_dim=16, rope_parameters=rope("llama3", **LLAMA3)),
        LlamaConfig(**SIZES, rope_parameters=rope("linear", factor=4.0)),
        LlamaConfig(**SIZES | {"eos_token_id": [2, 5, 7], "num_key_value_heads": None}),
        MistralConfig(**SIZES, sliding_window=None),
        MistralConfig(**SIZES, sliding_window=24),
        Qwen2Config(**SIZES, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=64)),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
        Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=16),
        Qwen3Config(**SIZES, head_dim=20, attention_bias=True, tie_word_embeddings=True),
        Qwen3Config(
            **SIZES,
            use_sliding_window=True,
            sliding_window=16,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ]


@pytest.mark.parametrize("index", range(12))
def test_spec_agrees_with_the_config_that_transformers_wrote(index: int, tmp_path: Any) -> None:
    c = hf_configs()[index]
    spec = from_hf(written(c, tmp_path))
    assert (spec.family, spec.layers, spec.hidden, spec.heads) == (c.model_type, 3, 32, 4)
    assert (spec.intermediate, spec.vocab, spec.context) == (48, 96, 256)
    assert spec.kv_heads == c.num_key_value_heads
    assert spec.head_dim == (getattr(c, "head_dim", None) or 8)
    assert (spec.eps, spec.tied) == (c.rms_norm_eps, c.tie_word_embeddings)
    rope = c.rope_parameters
    assert spec.rope.theta == rope["rope_theta"]
    assert spec.rope.kind == {"default": "none"}.get(rope["rope_type"], rope["rope_type"])
    assert spec.rope.factor == rope.get("factor", 1.0)
    eos = c.eos_token_id if isinstance(c.eos_token_id, list) else [c.eos_token_id]
    assert (spec.bos, spec.eos) == (c.bos_token_id, tuple(eos))
    types = getattr(c, "layer_types", None)
    if types is None:
        types = ["sliding_attention" if getattr(c, "sliding_window", None) else "full_attention"] * 3
    assert [bool(spec.windowed) and spec.windowed[i] for i in range(3)] == [t == "sliding_attention" for t in types]
    assert spec.window == (c.sliding_window if "sliding_attention" in types else None)


@pytest.mark.parametrize("index", range(12))
def test_tensor_shapes_are_those_of_the_transformers_model(index: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = hf_configs()[index]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = sorted(tuple(p.shape) for p in model.parameters())  # a tied head is one parameter
    data = json.loads(config.to_json_string(use_diff=False)) | {"architectures": None}
    assert sorted(from_hf(data).tensor_shapes().values()) == theirs


def test_published_configs_of_transformers_4() -> None:
    llama31 = from_hf(
        published(
            rope_theta=500000.0,
            rope_scaling=LLAMA3 | {"rope_type": "llama3"},
            eos_token_id=[4, 8, 9],
            tie_word_embeddings=False,
            pretraining_tp=1,
        ),
        {"eos_token_id": [4, 11]},
    )
    assert llama31.rope == Rope(500000.0, "llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
    assert llama31.eos == (4, 8, 9, 11)
    assert llama31.head_dim == 8
    smollm2 = from_hf(published(rope_theta=100000, rope_scaling=None, rope_interleaved=False, is_llama_config=True))
    assert smollm2.rope == Rope(100000.0)
    legacy = from_hf(published(rope_scaling={"type": "linear", "factor": 2.0}))
    assert legacy.rope == Rope(10000.0, "linear", 2.0)
    assert not legacy.tied
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert from_hf(published(**mistral, sliding_window=100)).windowed == (True, True, True)
    qwen = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    spec = from_hf(published(**qwen, sliding_window=64, max_window_layers=1, rope_scaling=yarn))
    assert spec.qkv_bias
    assert not spec.output_bias
    assert spec.window is None
    assert spec.rope == Rope(10000.0, "yarn", 4.0, 256)
    assert spec.context == 1024  # the config has the length before scaling


def test_yarn_options_reach_the_rope() -> None:
    options = {"attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False, "beta_fast": 16}
    scaling = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 7000.0} | options
    rope = from_hf(published(rope_parameters=scaling)).rope
    assert rope == Rope(
        7000.0, "yarn", 2.0, 256, beta_fast=16.0, beta_slow=1.0, **{k: options[k] for k in list(options)[:4]}
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gemma3"}, "model_type='gemma3'"),
        ({"model_type": None}, "model_type=None"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "longrope"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": LLAMA3 | {"rope_type": "llama3", "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": -1}}, "factor"),
        ({"rope_theta": 0}, "theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"vocab_size": 10**400}, "vocab"),
        ({"hidden_size": 0}, "hidden"),
        ({"hidden_size": 1 << 40}, "hidden"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size='32'"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"vocab_size": -5}, "vocab"),
        ({"eos_token_id": 96}, "eos=96"),
        ({"eos_token_id": "two"}, "eos_token_id='two'"),
        ({"bos_token_id": -1}, "bos=-1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
        ({"rms_norm_eps": 7.0}, "eps=7.0"),
        ({"sliding_window": 64}, "sliding_window=64"),
        ({"model_type": "qwen2", "architectures": None, "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen3", "architectures": None, "layer_types": ["linear_attention"] * 3}, "layer_types"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_hf(published(**changes))
    assert named in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(
    {*published(), "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "sliding_window", "head_dim"}
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3),
    family=st.sampled_from(["llama", "qwen2"]),
)
def test_any_json_gives_a_spec_or_a_model_error(changes: dict[str, Any], family: str) -> None:
    try:
        spec = from_hf(published() | {"model_type": family, "architectures": None} | changes)
    except ModelError:
        return
    assert spec.layers >= 1
    assert len(spec.tensor_shapes()) < 20 * spec.layers + 3


# --- GGUF


def header(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    base = {
        "general.architecture": architecture,
        "context_length": 512,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "tokenizer.ggml.tokens": [str(i) for i in range(96)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    own = ("general.", "tokenizer.")
    return {k if k.startswith(own) else f"{architecture}.{k}": v for k, v in base.items() if v is not None}


def test_gguf_headers_of_each_architecture() -> None:
    spec = from_gguf(header(tokenizer__ggml__eot_token_id=5), {"output.weight", "blk.0.attn_q.bias"})
    assert (spec.family, spec.eps, spec.kv_heads, spec.head_dim, spec.vocab) == ("llama", 1e-5, 4, 8, 96)
    assert (spec.bos, spec.eos, spec.tied, spec.qkv_bias) == (1, (2, 5), False, True)
    assert spec.rope == Rope(10000.0)
    qwen2 = from_gguf(header("qwen2", attention__head_count_kv=2, rope__freq_base=1e6), set())
    assert (qwen2.tied, qwen2.qkv_bias, qwen2.qk_norm, qwen2.kv_heads, qwen2.rope.theta) == (True, True, False, 2, 1e6)
    qwen3 = from_gguf(header("qwen3", attention__key_length=16, attention__value_length=16), set())
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim) == (True, False, 16)
    windowed = from_gguf(header(attention__sliding_window=32), set())
    assert (windowed.window, windowed.windowed) == (32, (True, True))


def test_gguf_rope_scaling() -> None:
    linear = header(rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert from_gguf(linear, set()).rope == Rope(10000.0, "linear", 4.0)
    yarn = header(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=512)
    spec = from_gguf(yarn, set())
    assert spec.rope == Rope(10000.0, "yarn", 4.0, 512)
    assert spec.context == 2048


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general__architecture": "falcon"}, "general.architecture='falcon'"),
        ({"expert_count": 8}, "llama.expert_count=8"),
        ({"attention__head_count": [4, 4]}, "llama.attention.head_count"),
        ({"rope__dimension_count": 4}, "llama.rope.dimension_count=4"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type='longrope'"),
        ({"attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"block_count": 0}, "block_count"),
        ({"tokenizer__ggml__tokens": None}, "vocab_size is missing"),
    ],
)
def test_gguf_headers_that_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        from_gguf(header(**changes), set())
    assert named in str(caught.value)


# --- Llama 3's frequency bands


def test_llama3_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = LLAMA3 | {"rope_type": "llama3", "rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=2048, num_attention_heads=32, rope_parameters=parameters)
    theirs = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")[0].double().numpy()
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    ours = plain / llama3_factors(Rope(500000.0, "llama3", 8.0, 8192), 64)
    assert np.allclose(ours, theirs, rtol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    factor=st.sampled_from([2.0, 8.0, 32.0, 5.5]),
    original=st.sampled_from([2048, 4096, 8192, 32768]),
    high=st.sampled_from([2.0, 4.0, 8.0]),
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
)
def test_rope_is_found_again_from_its_factors(factor: float, original: int, high: float, theta: float) -> None:
    rope = Rope(theta, "llama3", factor, original, low_freq_factor=1.0, high_freq_factor=high)
    factors = llama3_factors(rope, 128).astype(np.float32)
    if math.isclose(factors.max(), factor):  # else the lowest frequencies are inside the band
        found = rope_from_factors(Rope(theta), 128, factors.tolist())
        assert np.allclose(llama3_factors(found, 128), factors, rtol=1e-4)
        assert (found.kind, found.factor) == ("llama3", factor)


def test_other_factors_are_refused() -> None:
    assert rope_from_factors(Rope(), 8, [1.0] * 4) == Rope()
    for factors in ([1.0, 3.0, 2.0, 8.0], [1.0, 2.0], [0.0] * 4, [float("nan")] * 4):
        with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
            rope_from_factors(Rope(), 8, factors)


def test_a_spec_checks_itself() -> None:
    spec = from_hf(published())
    for changes in (
        {"heads": 5},
        {"head_dim": 9},
        {"window": 8},
        {"family": "gpt2"},
        {"eos": (-1,)},
        {"eps": math.nan},
    ):
        with pytest.raises(ModelError):
            replace(spec, **changes)
    assert isinstance(replace(spec, window=8, windowed=(True, False, True)), Spec)
