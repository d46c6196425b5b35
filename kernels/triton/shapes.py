"""The linear layers of real models, which the ahead-of-time table compiles for. In: nothing. Out: shapes."""

# (outputs, inputs) of q k v, o, gate and up, down, head
_MODELS = {
    "smollm2-135m": ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    "qwen3-0.6b": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024)),
    "llama-3.2-1b": ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)),
    "llama-3.1-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
}
PROJECTIONS = tuple(pair for model in _MODELS.values() for pair in model)
