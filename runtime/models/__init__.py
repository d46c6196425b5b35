"""Models. In: a name, a directory, a file. Out: a `Spec`, tensors (safetensors and GGUF, no code), a tokenizer."""
