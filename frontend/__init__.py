"""The language. In: Python functions over a `State`. Out: operations (`ir`) for a backend, and a `Run` that follows its
events. Pure Python: it imports neither torch nor, outside of `backends.engine`, the runtime.
"""
