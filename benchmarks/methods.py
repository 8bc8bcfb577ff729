# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What ``fusions.py`` compares, and what it notes of each."""

from dataclasses import dataclass, field
from typing import Dict, List

ORACLE, CHOSEN = 'best single by test (oracle)', 'single chosen by score'


@dataclass
class Method:
    """A fusion whose weights depend on the drawn images.

    Attributes:
        name (str): For people.
        fusion (dict): Its config.
        scored (bool): Whether it starts from scores.
        held_out (bool): Whether its weights then learn on held-out halves.
    """
    name: str
    fusion: dict
    scored: bool = True
    held_out: bool = False


METHODS = [
    Method('Ens-MoE from scores', dict(type='EnsMoE')),
    Method('Ens-MoE from scores, top_k=2', dict(type='EnsMoE', top_k=2)),
    Method('Ens-MoE from scores, zero module',
           dict(type='EnsMoE', zero_module=True)),
    Method('Ens-MoE hold-out from uniform', dict(type='EnsMoE'), False, True),
    Method('Ens-MoE hold-out after scores', dict(type='EnsMoE'), True, True),
    Method('LinearMoE from scores', dict(type='LinearMoE')),
    Method('LinearMoE hold-out after scores', dict(type='LinearMoE'), True,
           True),
    Method('RoutedMoE hold-out after scores', dict(type='RoutedMoE'), True,
           True),
    Method('ParameterMerge from scores', dict(type='ParameterMerge')),
    Method('ParameterMerge hold-out after scores',
           dict(type='ParameterMerge'), True, True),
]
FIXED = {
    'uniform weights': dict(type='FixedFusion'),
    'uniform merge': dict(type='FixedMerge'),
}


@dataclass
class Result:
    """What a method achieved, one entry a draw.

    Attributes:
        accuracy (list[float]): Balanced accuracy on the test images.
        seconds (list[float]): Wall time of fusing.
        passes (list[int]): Images that fusing sent through the trunk.
        backward (list[int]): How many of them were sent back as well.
        chosen (list[str]): The single module, where one was chosen.
        gates (list[dict]): Mean weight of each module over the slots.
        skipped (str): Why there is nothing.
    """
    accuracy: List[float] = field(default_factory=list)
    seconds: List[float] = field(default_factory=list)
    passes: List[int] = field(default_factory=list)
    backward: List[int] = field(default_factory=list)
    chosen: List[str] = field(default_factory=list)
    gates: List[Dict[str, float]] = field(default_factory=list)
    skipped: str = ''

    def add(self, accuracy: float, seconds: float = 0., passes: int = 0,
            backward: int = 0) -> None:
        self.accuracy.append(accuracy)
        self.seconds.append(round(seconds, 2))
        self.passes.append(passes)
        self.backward.append(backward)
