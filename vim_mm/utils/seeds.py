# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Random numbers that depend on where they are drawn, not on what was before.

Every use has a stream of its own: a generator, or a seed, that is a function
of whole numbers such as the run's seed and the step.
"""

import random

import numpy as np
import torch

#: What the numbers are for; two uses never share a stream.
TASKS, ORDER, SAMPLE, STEP = range(4)


def stream(*key: int) -> np.random.Generator:
    """The generator of whole numbers, none of them negative."""
    return np.random.default_rng(key)


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch on all devices by whole numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
