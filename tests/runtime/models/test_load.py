"""Weights: equal to transformers' for each family, from safetensors and GGUF; damaged files are refused by name."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, quants
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ramet.frontend.errors import ModelError
from ramet.runtime.models import hub
from ramet.runtime.models.gguf import read_gguf
from ramet.runtime.models.gguf_spec import llama3_factors
from ramet.runtime.models.hub import ModelSource, load_spec, resolve
from ramet.runtime.models.load import load_weights, random_weights
from ramet.runtime.models.spec import Rope, Spec

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = ["llama", "llama-biased", "smollm2", "mistral", "qwen2", "qwen3"]


def tiny_model(family: str) -> Any:
    """A randomly initialised model, biases included."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    config = {
        "llama": lambda: LlamaConfig(**SIZES),
        "llama-biased": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        "smollm2": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
        "mistral": lambda: MistralConfig(**SIZES, sliding_window=16),
        "qwen2": lambda: Qwen2Config(**SIZES),
        "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    }[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def theirs(model: Any, spec: Spec) -> dict[str, torch.Tensor]:
    """transformers' parameters by our names, found through the modules rather than through file names."""
    out = {"embed": model.get_input_embeddings().weight, "norm": model.model.norm.weight}
    if not spec.tied:
        out["head"] = model.lm_head.weight
    for n, layer in enumerate(model.model.layers):
        a, m, p = layer.self_attn, layer.mlp, f"layers.{n}."
        modules = {"q": a.q_proj, "k": a.k_proj, "v": a.v_proj, "o": a.o_proj}
        modules |= {"gate": m.gate_proj, "up": m.up_proj, "down": m.down_proj}
        for name, module in modules.items():
            out[p + name] = module.weight
            if module.bias is not None:
                out[p + name + "_bias"] = module.bias
        out |= {p + "attn_norm": layer.input_layernorm.weight, p + "mlp_norm": layer.post_attention_layernorm.weight}
        if spec.qk_norm:
            out |= {p + "q_norm": a.q_norm.weight, p + "k_norm": a.k_norm.weight}
    return {name: tensor.detach() for name, tensor in out.items()}


def assert_same(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], spec: Spec, dtype: torch.dtype
) -> None:
    assert {name: tuple(w.shape) for name, w in weights.items()} == spec.tensor_shapes()
    for name, tensor in weights.items():
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected[name].to(dtype)), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_of_each_family(family: str, sharded: bool, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path, max_shard_size="30KB" if sharded else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    source = resolve(str(tmp_path))
    spec = load_spec(source)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):  # the last: on a GPU
        assert_same(load_weights(source, spec, dtype), theirs(model, spec), spec, dtype)


def test_half_precision_files_are_widened_exactly(tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.float16)
    model.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    spec = load_spec(source)
    assert_same(load_weights(source, spec, torch.float32), theirs(model, spec), spec, torch.float32)


def test_weights_do_not_change_with_the_file(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    weights = load_weights(source, load_spec(source), torch.float32)
    before = weights["embed"].clone()
    with (tmp_path / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size // 2))
    assert torch.equal(weights["embed"], before)
    weights["embed"][0] = 0  # writable


# --- GGUF


def write_gguf(path: Path, spec: Spec, weights: dict[str, torch.Tensor], **extra: Any) -> ModelSource:
    """What llama.cpp's converter does: its names, and q and k permuted for architecture llama."""
    arch = "llama" if spec.family == "mistral" else spec.family
    writer = GGUFWriter(path, arch)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.intermediate)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.eps)
    writer.add_rope_freq_base(spec.rope.theta)
    writer.add_vocab_size(spec.vocab)
    parts = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v"}
    parts |= {"o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    parts |= {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
    for name, tensor in weights.items():
        part = name.rpartition(".")[2]
        data = tensor.numpy()
        if name.startswith("layers."):
            stem = parts[part.removesuffix("_bias")] + (".bias" if part.endswith("_bias") else ".weight")
            target = f"blk.{name.split('.')[1]}.{stem}"
        else:
            target = {"embed": "token_embd", "norm": "output_norm", "head": "output"}[name] + ".weight"
        if arch == "llama" and part in ("q", "q_bias", "k", "k_bias"):
            heads = spec.heads if part[0] == "q" else spec.kv_heads
            halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
            data = halves.swapaxes(1, 2).reshape(data.shape)
        kind = extra.get("kind") if data.ndim == 2 else None
        writer.add_tensor(target, quants.quantize(data, kind) if kind is not None else data.copy(), raw_dtype=kind)
    for name, data in extra.get("tensors", {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolve(str(path))


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_of_each_family(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    spec = load_spec(resolve(str(tmp_path)))
    expected = theirs(model, spec)
    source = write_gguf(tmp_path / "m.gguf", spec, expected)
    found = load_spec(source)
    changed = {"name": "m", "bos": None, "eos": ()}
    if family == "mistral":  # converters write it as llama, without the window
        changed |= {"family": "llama", "window": None, "windowed": ()}
    assert found == replace(spec, **changed)
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(load_weights(source, found, dtype), expected, found, dtype)


def test_quantised_gguf(tmp_path: Path) -> None:
    spec = replace(hub.PRESETS["tiny"], vocab=96)
    weights = random_weights(spec, torch.float32)
    source = write_gguf(tmp_path / "m.gguf", spec, weights, kind=GGMLQuantizationType.Q8_0)
    loaded = load_weights(source, load_spec(source), torch.float32)
    for name, tensor in weights.items():
        assert torch.allclose(loaded[name], tensor, atol=float(tensor.abs().max()) / 200), name


def test_llama_3_bands_come_from_the_gguf_tensor(tmp_path: Path) -> None:
    rope = Rope(500000.0, "llama3", 32.0, 8192)
    spec = replace(hub.PRESETS["tiny"], vocab=96, head_dim=64, rope=rope)
    tensors = {"rope_freqs.weight": llama3_factors(rope, 64).astype(np.float32)}
    source = write_gguf(tmp_path / "m.gguf", spec, random_weights(spec, torch.float32), tensors=tensors)
    found = load_spec(source)
    assert found.rope == rope
    load_weights(source, found, torch.float32)
    for other in (Rope(500000.0), replace(rope, factor=8.0), Rope(500000.0, "linear", 32.0)):
        with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
            load_weights(source, replace(found, rope=other), torch.float32)


# --- damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model("smollm2").save_pretrained(tmp_path)
    return tmp_path


def load(path: Path) -> dict[str, torch.Tensor]:
    source = resolve(str(path))
    return load_weights(source, load_spec(source), torch.float32)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors; "__" stands for "."."""
    tensors = load_file(path / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "model.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(saved: Path) -> None:
    norm = "model__layers__1__input_layernorm__weight"
    good = load_file(saved / "model.safetensors")[norm.replace("__", ".")]
    cases: list[tuple[torch.Tensor | None, str]] = [
        (None, "has no tensor model.layers.1.input_layernorm.weight"),
        (torch.zeros(31), r"input_layernorm.weight' has shape \[31\], expected \[32\]"),
        (torch.zeros(32, dtype=torch.int8), "input_layernorm.weight' has type I8; supported: F32, F16, BF16"),
        (torch.full((32,), float("nan")), "layers.1.attn_norm' has values that are not finite"),
        (torch.full((32,), float("inf")), "layers.1.attn_norm' has values that are not finite"),
    ]
    for tensor, message in cases:
        rewrite(saved, **{norm: tensor})
        with pytest.raises(ModelError, match=message):
            load(saved)
    rewrite(saved, **{norm: good, "model__layers__2__mlp__up_proj__weight": torch.zeros(64, 32)})
    with pytest.raises(ModelError, match=r"unexpected tensor model\.layers\.2\.mlp\.up_proj\.weight"):
        load(saved)


def test_known_constants_of_older_files_are_ignored(saved: Path) -> None:
    rewrite(saved, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert len(load(saved)) == 2 + 9 * 2


def test_a_second_copy_of_a_tied_head_must_be_equal(saved: Path) -> None:
    embed = load_file(saved / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(saved, lm_head__weight=embed.clone())
    assert "head" not in load(saved)
    rewrite(saved, lm_head__weight=embed + 1)
    with pytest.raises(ModelError, match="tie_word_embeddings to false"):
        load(saved)


def test_an_unsupported_dtype_is_refused(saved: Path) -> None:
    source = resolve(str(saved))
    with pytest.raises(ModelError, match=r"dtype=torch\.float64: weights are loaded as torch\.float32, .*float16"):
        load_weights(source, load_spec(source), torch.float64)


def test_what_float16_cannot_hold_is_refused(saved: Path) -> None:
    norm = load_file(saved / "model.safetensors")["model.norm.weight"].clone()
    norm[3] = 70_000
    rewrite(saved, model__norm__weight=norm)
    load(saved)
    with pytest.raises(ModelError, match="'norm' has values beyond float16's; choose dtype='bfloat16'"):
        load_weights(resolve(str(saved)), load_spec(resolve(str(saved))), torch.float16)


def test_shard_index(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    shards = sorted(set(data["weight_map"].values()))
    for name, message in (
        ("../x.safetensors", "not the name of a file"),
        ("gone.safetensors", "names gone.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": data["weight_map"] | {"a": name}}))
        with pytest.raises(ModelError, match=message):
            load(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', "[" * 200_000):
        index.write_text(text)
        with pytest.raises(ModelError, match="not a shard index"):
            load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": shards[0]}}))
    with pytest.raises(ModelError, match="has no tensor"):
        load(tmp_path)
    index.unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json"):
        load(tmp_path)
    (tmp_path / "again.safetensors").write_bytes((tmp_path / shards[0]).read_bytes())
    index.write_text(json.dumps({"weight_map": {s: s for s in [*shards, "again.safetensors"]}}))
    with pytest.raises(ModelError, match="is also in"):
        load(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_safetensors_header_is_a_model_error_or_harmless(saved: Path, data: Any) -> None:
    file = saved / "model.safetensors"
    good = file.read_bytes()
    (length,) = struct.unpack_from("<Q", good)
    broken = bytearray(good)
    if data.draw(st.booleans()):
        broken = broken[: data.draw(st.integers(0, len(good) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            broken[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    other = saved / "damaged"
    other.mkdir(exist_ok=True)
    (other / "config.json").write_bytes((saved / "config.json").read_bytes())
    (other / "model.safetensors").unlink(missing_ok=True)
    (other / "model.safetensors").write_bytes(broken)
    try:
        weights = load(other)
    except ModelError:
        return
    assert {name: tuple(w.shape) for name, w in weights.items()} == load_spec(resolve(str(other))).tensor_shapes()


def test_gguf_with_the_wrong_spec_is_refused(tmp_path: Path) -> None:
    spec = replace(hub.PRESETS["tiny"], vocab=96)
    source = write_gguf(tmp_path / "m.gguf", spec, random_weights(spec, torch.float32))
    with pytest.raises(ModelError, match=r"token_embd\.weight' has shape \[96, 64\], expected \[97, 64\]"):
        load_weights(source, replace(spec, vocab=97), torch.float32)
    with pytest.raises(ModelError, match=r"has no tensor output\.weight"):
        load_weights(source, replace(spec, tied=False), torch.float32)
    with pytest.raises(ModelError, match=r"unexpected tensor blk\.1\."):
        load_weights(source, replace(spec, layers=1), torch.float32)


# --- random weights


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b"])
def test_random_weights_have_the_shapes_of_the_spec(name: str) -> None:
    spec = replace(hub.PRESETS[name], layers=1, vocab=64, hidden=64, intermediate=96, qkv_bias=True)
    weights = random_weights(spec, torch.bfloat16)
    assert {k: tuple(w.shape) for k, w in weights.items()} == spec.tensor_shapes()
    assert all(torch.isfinite(w).all() and w.dtype == torch.bfloat16 for w in weights.values())


def test_random_weights_depend_on_the_seed_alone() -> None:
    spec = replace(hub.PRESETS["tiny"], vocab=64)
    one, two, other = (random_weights(spec, torch.float32, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["embed"], other["embed"])
    rounded = random_weights(spec, torch.bfloat16, 1)
    assert all(torch.equal(one[k].bfloat16(), rounded[k]) for k in one)
    source = resolve("random:tiny")
    assert set(load_weights(source, spec, torch.float32)) == set(one)


def test_sizes_of_the_presets() -> None:
    millions = {
        name: sum(int(np.prod(shape)) for shape in spec.tensor_shapes().values()) // 10**6
        for name, spec in hub.PRESETS.items()
    }
    assert millions == {"tiny": 3, "smollm2-135m": 134, "qwen3-0.6b": 596, "llama-3.2-1b": 1235, "llama-3.1-8b": 8030}


@pytest.mark.model
def test_the_default_model_is_its_preset_and_loads() -> None:
    source = resolve()
    spec = load_spec(source)
    assert spec == replace(hub.PRESETS["smollm2-135m"], name=hub.DEFAULT)
    weights = load_weights(source, spec, torch.bfloat16)
    assert {name: tuple(w.shape) for name, w in weights.items()} == spec.tensor_shapes()
    assert all(w.dtype == torch.bfloat16 for w in weights.values())
    # Row 1 of head 0 of the file is row d/2 of the half-split order.
    stored = torch.from_numpy(read_gguf(source.path).dequantize("blk.3.attn_k.weight")).bfloat16()
    half = spec.head_dim // 2
    for head in range(spec.kv_heads):
        rows = stored[head * spec.head_dim : (head + 1) * spec.head_dim]
        ours = weights["layers.3.k"][head * spec.head_dim : (head + 1) * spec.head_dim]
        assert torch.equal(ours[:half], rows[0::2])
        assert torch.equal(ours[half:], rows[1::2])
