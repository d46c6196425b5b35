"""What every test process needs before torch is loaded."""

from __future__ import annotations

import os

from hypothesis import settings

# OpenMP threads that spin while they wait slow everything down as soon as two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No timing is asserted: an example that takes longer on a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
