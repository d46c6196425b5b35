"""The decoder against transformers: tiny random models of every family, saved and loaded as a user's model is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ramet.frontend.errors import ModelError
from ramet.runtime.batch import Masks
from ramet.runtime.models.decoder import Decoder, attention_factor, inverse_frequencies
from ramet.runtime.models.hub import load_spec, resolve
from ramet.runtime.models.load import load_weights, random_weights
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.runner import TorchRunner

from ...kernels.ragged import Part, batch, draws

SHAPE = {
    "vocab_size": 331,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}

FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "llama untied biased": (
        transformers.LlamaConfig,
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
    ),
    "llama multi-head": (transformers.LlamaConfig, {"num_key_value_heads": 6}),
    "llama3": (
        transformers.LlamaConfig,
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64, "rope_theta": 500000.0}},
    ),
    "linear": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "mistral window": (transformers.MistralConfig, {"sliding_window": 24, "head_dim": 32}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": False}),
    "qwen2 window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1},
    ),
    "qwen2 yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "yarn factor": (transformers.LlamaConfig, {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0}}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
}


@dataclass
class Pair:
    """A model of transformers and where it was saved."""

    model: Any
    path: str

    def runner(self, dtype: torch.dtype) -> TorchRunner:
        source = resolve(self.path)
        spec = load_spec(source)
        decoder = Decoder(spec, load_weights(source, spec, dtype), "cpu", dtype)
        return TorchRunner(decoder, capacity=600, rows=4, context=512)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    kind, fields = FAMILIES[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**SHAPE | fields), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # from_config leaves norms at 1 and biases at 0
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "proj" in name:
                parameter.mul_(4)  # attention that is not flat, so that rope and masks matter
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return Pair(model, str(path))


PROMPT = torch.from_numpy(np.random.default_rng(1).integers(3, 331, (1, 200)))
SLOTS = np.random.default_rng(2).permutation(600).astype(np.int32)


def logits(runner: TorchRunner, ids: np.ndarray, chunk: int = 512, first: int = 0) -> torch.Tensor:
    """Logits of every position from `first` on, in chunks; K and V of those before it are stored already."""
    found = []
    for start in range(first, len(ids), chunk):
        part = Part(ids.astype(np.int32), SLOTS[: len(ids)], start, min(start + chunk, len(ids)))
        flight = runner.forward(batch([part]))
        assert flight.logits is not None
        found.append(flight.logits)
    return torch.cat(found)


def test_logits_equal_transformers(pair: Pair) -> None:
    with torch.no_grad():
        wanted = pair.model(PROMPT).logits[0]
    found = logits(pair.runner(torch.float32), PROMPT[0].numpy(), 77)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_greedy_equals_transformers(pair: Pair) -> None:
    wanted = pair.model.generate(
        PROMPT[:, :110], max_new_tokens=30, min_new_tokens=30, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    runner = pair.runner(torch.float32)
    ids = np.zeros(200, np.int32)
    ids[:110] = PROMPT[0, :110]
    found = []
    for length in range(110, 140):  # past 128, where YaRN's original context ends
        part = Part(ids, SLOTS, 0 if length == 110 else length - 1, length)
        last = part.stop - part.start - 1
        flight = runner.forward(batch([part], drawn=draws([last], into=[3]), feeds={} if length == 110 else {0: 3}))
        runner.sample(flight, Masks())
        found.append(int(runner.read(flight).tokens[0]))
    assert found == wanted[0, 110:].tolist()


def test_bfloat16_is_as_exact_as_transformers(pair: Pair) -> None:
    with torch.no_grad():
        exact = pair.model(PROMPT).logits[0]
        theirs = transformers.AutoModelForCausalLM.from_pretrained(pair.path, dtype=torch.bfloat16)(PROMPT).logits[0]
    ours = logits(pair.runner(torch.bfloat16), PROMPT[0].numpy())
    error = ours.sub(exact).square().mean().sqrt()
    assert error <= 1.5 * theirs.float().sub(exact).square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_chunks(pair: Pair, dtype: torch.dtype) -> None:
    runner, ids = pair.runner(dtype), PROMPT[0].numpy()
    whole = logits(runner, ids)
    for chunk in (7, 64):
        assert torch.equal(logits(runner, ids, chunk), whole)
    for first, stop in ((0, 26), (120, 132)):  # token by token: past the windows, past a boundary of blocks
        assert torch.equal(logits(runner, ids[:stop], 1, first), whole[first:stop])


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_the_same_token_by_token(pair: Pair, dtype: torch.dtype) -> None:
    runner = pair.runner(dtype)
    whole = logits(runner, PROMPT[0].numpy())
    assert torch.equal(logits(runner, PROMPT[0].numpy(), 1), whole)


# -- rope in numbers


def test_yarn_and_llama3_leave_fast_dimensions_alone() -> None:
    plain = inverse_frequencies(Rope(10000.0), 64)
    for rope in (
        Rope(10000.0, "llama3", 8.0, 256, 1.0, 4.0),
        Rope(10000.0, "yarn", 8.0, 256, beta_fast=32.0, beta_slow=1.0),
    ):
        scaled = inverse_frequencies(rope, 64)
        assert torch.equal(scaled[:1], plain[:1])
        assert torch.allclose(scaled[-4:], plain[-4:] / 8)
        assert bool((scaled <= plain * (1 + 1e-6)).all())


def test_attention_factor() -> None:
    yarn = Rope(10000.0, "yarn", 8.0, 256)
    assert attention_factor(Rope(10000.0, "linear", 8.0)) == 1
    assert attention_factor(yarn) == pytest.approx(0.1 * np.log(8) + 1)
    assert attention_factor(replace(yarn, factor=1.0)) == 1
    assert attention_factor(replace(yarn, mscale=0.5, mscale_all_dim=0.25)) == pytest.approx(
        (0.05 * np.log(8) + 1) / (0.025 * np.log(8) + 1)
    )
    assert attention_factor(replace(yarn, attention_factor=0.7)) == 0.7


# -- what is refused


SPEC = Spec("llama", "tiny", 1, 32, 2, 1, 16, 32, 50, 64, 1e-5, Rope(), tied=True)


def test_wrong_weights_are_named() -> None:
    weights = random_weights(SPEC, torch.float32)
    with pytest.raises(ModelError, match=r"'layers\.0\.k' is missing"):
        Decoder(SPEC, {name: w for name, w in weights.items() if name != "layers.0.k"}, "cpu", torch.float32)
    with pytest.raises(ModelError, match=r"'norm' has shape \(31,\); the spec says \(32,\)"):
        Decoder(SPEC, weights | {"norm": torch.ones(31)}, "cpu", torch.float32)
    with pytest.raises(ModelError, match="'head' is not one of the spec's"):
        Decoder(SPEC, weights | {"head": torch.ones(50, 32)}, "cpu", torch.float32)


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"dtype=torch\.float16: use torch\.float32 or torch\.bfloat16"):
        Decoder(SPEC, random_weights(SPEC, torch.float16), "cpu", torch.float16)
