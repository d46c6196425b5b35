"""The CPU. `operations` is its `Ops`, in torch; `draw` samples with numpy alone; `library` loads the native kernels,
which need no torch. This module imports nothing, so that each of them can be had without the others.
"""
