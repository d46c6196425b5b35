"""The dashboard: one page, and a stream of what the engine holds and does. In: a `Service`. Out: routes."""
