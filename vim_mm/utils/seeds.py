# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Random numbers that depend on where they are drawn, not on what was before.

Every use has a stream of its own: a generator, or a seed, that is a function
of whole numbers such as the run's seed and the step.
"""

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch

#: What the numbers are for; two uses never share a stream.
TASKS, ORDER, SAMPLE, STEP, VIEW = range(5)


def stream(*key: int) -> np.random.Generator:
    """The generator of whole numbers, none of them negative."""
    return np.random.default_rng(key)


def torch_stream(*key: int) -> torch.Generator:
    """The same of torch, on the CPU."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch on all devices by whole numbers."""
    seed = _seed(key)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within this context draws of Python, NumPy and torch depend on a key.

    Afterwards all three go on as if nothing had been drawn. Of torch only
    the generator of the CPU is concerned: pipelines run there, and a model
    on another device shall not draw the same numbers again and again.

    Args:
        *key (int): Whole numbers, none of them negative.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = _seed(key)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed(key: tuple) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
