# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a comparison says: means, spreads, gains and one sentence."""

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from .steps import SINGLE, Contrast, Row

#: Values of one method by seed.
Values = Dict[int, float]
#: A reference, which no verdict recommends: it keeps a model for each task.
FULL = 'full fine-tuning'
#: What is to be said where nothing tells differences from noise.
ONE_SEED = 'One seed: directions, not results.'


@dataclass(frozen=True)
class Gain:
    """Mean difference of two methods over the seeds of both.

    Attributes:
        mean (float): The mean.
        error (float, optional): Its standard error; None for one seed.
        seeds (int): Number of seeds.
    """
    mean: float
    error: Optional[float]
    seeds: int

    def __str__(self) -> str:
        error = '' if self.error is None else f' ± {self.error:.3f}'
        mean = round(self.mean, 3) + 0.  # not -0
        return f'{mean:+.3f}{error}'

    @property
    def worse(self) -> bool:
        """Whether it is a loss of more than one standard error."""
        return self.mean < -(self.error or 0.)

    @property
    def better(self) -> bool:
        """Whether it is a gain of more than one standard error."""
        return self.mean > (self.error or 0.)


@dataclass(frozen=True)
class Claim:
    """One line of a headline.

    Attributes:
        task (str): What is learned.
        metric (str): How it is judged.
        bars (dict[str, float]): The methods side by side, and their means.
        gain (Gain): Of the result over what it is compared with.
        n_test (int): Images behind the values.
        verdict (str): A sentence, or nothing where the gain says it all.
    """
    task: str
    metric: str
    bars: Dict[str, float]
    gain: Gain
    n_test: int
    verdict: str


def spread(values: Sequence[float], sign: str = '') -> str:
    """Mean and sample deviation, for people."""
    deviation = f' ± {stdev(values):.3f}' if len(values) > 1 else ''
    return f'{mean(values):{sign}.3f}{deviation}'


def gain(values: Values, against: Values) -> Optional[Gain]:
    """Difference of two methods, seed by seed; None without a common seed."""
    # what binary fractions add is no difference
    pairs = [round(values[s] - against[s], 9) for s in values if s in against]
    if not pairs:
        return None
    error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Gain(mean(pairs), error, len(pairs))


def by_method(rows: Sequence[Row]) -> Dict[str, Values]:
    """Method to seed to value, in the order of the rows."""
    found: Dict[str, Values] = {}
    for row in rows:
        found.setdefault(row.method, {})[row.seed] = row.value
    return found


def claims(rows: Sequence[Row], contrast: Optional[Contrast]) -> List[Claim]:
    """What a step's rows say, one claim a task."""
    if contrast is None:
        return []
    tasks: Dict[Tuple[str, str], List[Row]] = {}
    for row in rows:
        tasks.setdefault((row.task, row.metric), []).append(row)
    found = (_claim(own, contrast) for own in tasks.values())
    return [claim for claim in found if claim is not None]


def _claim(rows: List[Row], contrast: Contrast) -> Optional[Claim]:
    methods = by_method(rows)
    result = contrast.result
    if result not in methods:  # the name goes on
        result = next((m for m in methods if m.startswith(result)), None)
    if result is None or contrast.against not in methods:
        return None
    methods = _complete(methods, result, contrast.against)
    if not methods:
        return None
    difference = gain(methods[result], methods[contrast.against])
    single = best_single(methods)
    # the verdict may name another fusion
    chosen = single and _simplest(methods, contrast.against, single)
    shown = [contrast.against, single, chosen, result]
    bars = {name: mean(methods[name].values()) for name in shown if name}
    return Claim(rows[0].task, rows[0].metric, bars, difference,
                 rows[0].n_test, verdict(methods, result, contrast.against))


def _complete(methods: Mapping[str, Values], result: str,
              against: str) -> Dict[str, Values]:
    """Methods that have run with all seeds of both, and these seeds alone."""
    seeds = [seed for seed in methods[result] if seed in methods[against]]
    return {
        name: {seed: values[seed]
               for seed in seeds}
        for name, values in methods.items()
        if seeds and all(seed in values for seed in seeds)
    }


def best_single(methods: Mapping[str, Values]) -> Optional[str]:
    """The single module with the largest mean, None without any."""
    singles = [name for name in methods if name.startswith(SINGLE)]
    return max(
        singles, key=lambda name: mean(methods[name].values()), default=None)


def verdict(methods: Mapping[str, Values], result: str, against: str) -> str:
    """What to use: the simplest that is not worse than the best.

    That is, not by more than one standard error of their difference. A bare
    baseline is simpler than a single module, and this than a fusion; of two
    fusions, that is simpler which comes first.

    Args:
        methods (Mapping): Method to seed to value.
        result (str): What the comparison is about.
        against (str): The bare baseline.
    """
    base, single = methods[against], best_single(methods)
    over = gain(methods[result], base)
    if single is None:
        if over.better or over.worse:
            return ''  # the gain says it
        if over.error:
            return f'No more than one standard error from {against}.'
        return f'The same as {against}.'
    chosen = _simplest(methods, against, single)
    if chosen == against:
        return f'Use the {against}: nothing here is better.'
    if chosen == single:
        name = single.replace(SINGLE, '', 1)
        return (f'The module {name} alone is enough: '
                f'{gain(methods[single], base)} over the {against}, '
                f'{gain(methods[single], methods[result])} over {result}.')
    return (f'Fuse ({chosen}): {gain(methods[chosen], base)} over the '
            f'{against}, {gain(methods[chosen], methods[single])} over the '
            f'best single module, {single.replace(SINGLE, "", 1)}.')


def _simplest(methods: Mapping[str, Values], against: str,
              single: str) -> str:
    fusions = [
        name for name in methods
        if name not in (against, FULL) and not name.startswith(SINGLE)
    ]
    order = [against, single, *fusions]
    best = max(order, key=lambda name: mean(methods[name].values()))
    for name in order:
        if not gain(methods[name], methods[best]).worse:
            break
    return name
