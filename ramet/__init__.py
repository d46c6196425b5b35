"""Many branches, one root: a DSL for multi-call LLM programs and the engine that runs them."""
