# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Tuple

from vim_mm.utils.arguments import check_number

KINDS = ('progressive', 'reversed', 'constant')


class Schedule:
    """Weights of the feature and the logits loss over a training.

    With ``progressive`` features are aligned alone first (phase I); then the
    logits join, and both weights fall linearly to 0 (phase II), so that in
    the end only the task counts. What "progressive" means in TDMR is not
    public: this is our reading.

    Args:
        kind (str): 'progressive'; 'reversed', the same from its end to its
            beginning; or 'constant'. Defaults to 'progressive'.
        first (float): Share of phase I; 0 leaves it out. Defaults to 0.3.
        feature (float): Largest weight of the feature loss; 0 switches it
            off. Defaults to 1.
        logits (float): Largest weight of the logits loss; 0 switches it off.
            Defaults to 1.
    """

    def __init__(self,
                 kind: str = 'progressive',
                 first: float = 0.3,
                 feature: float = 1.,
                 logits: float = 1.) -> None:
        if kind not in KINDS:
            raise ValueError(f'`schedule.kind` is {kind!r}; give one of '
                             f'{", ".join(KINDS)}.')
        check_number(first, 'schedule.first', below=1.)
        check_number(feature, 'schedule.feature')
        check_number(logits, 'schedule.logits')
        self.kind = kind
        self.first = first
        self.feature = feature
        self.logits = logits

    def at(self, progress: float) -> Tuple[float, float]:
        """Weights of the feature and of the logits loss.

        Args:
            progress (float): What share of the training is done, 0 to 1.
        """
        if self.kind == 'constant':
            return self.feature, self.logits
        if self.kind == 'reversed':
            progress = 1 - progress
        if progress < self.first:
            return self.feature, 0.
        left = (1 - progress) / (1 - self.first)
        return self.feature * left, self.logits * left
