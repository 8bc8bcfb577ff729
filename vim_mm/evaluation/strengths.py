# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which modules to weigh how much, by scores of held-out images. Ours."""

from typing import Callable, Iterator, List, NamedTuple, Tuple

#: Shares of what a module was trained at that it may enter with.
STRENGTHS = (0.1, 0.25, 0.5, 1.)
#: What rises by less than so many standard errors may be noise.
MARGIN = 1.
#: Settings that are tried at most: so many, and for each module so many more.
BASE_TRIES, TRIES_EACH = 8, 4

#: Of each module, in order
Weights = Tuple[float, ...]


class Gain(NamedTuple):
    """How much better one setting scores than another.

    Attributes:
        value (float): Difference of the scores.
        noise (float): Its standard error over images.
    """
    value: float
    noise: float

    @property
    def is_real(self) -> bool:
        """Whether it is more than noise."""
        return self.value > MARGIN * self.noise


Score = Callable[[Weights], float]
Compare = Callable[[Weights, Weights], Gain]


def bare(num: int) -> Weights:
    """No module."""
    return (0., ) * num


def single(num: int, module: int, weight: float = 1.) -> Weights:
    """One module."""
    return tuple(weight * (i == module) for i in range(num))


def uniform(num: int) -> Weights:
    """All modules, at an equal share of one."""
    return (1 / num, ) * num


def plain_settings(num: int, most: int) -> List[Weights]:
    """What is always a candidate: no module, each alone, all alike."""
    settings = [bare(num), *(single(num, i) for i in range(num))]
    return settings + [uniform(num)] * (1 < num <= most)


class Search:
    """Let modules enter one by one, each at the strength that scores best.

    It starts from the bare trunk and stops once no module raises the paired
    score by more than its noise. Settings that are tried are few enough to
    take a pass each: ``4 * num + 8`` at most.

    Args:
        num (int): Number of modules.
        most (int): How many of them may enter.
        score (Callable): Score of a setting; computed once for each.
        compare (Callable): From two settings to the gain of the first.
    """

    def __init__(self, num: int, most: int, score: Score,
                 compare: Compare) -> None:
        self.num, self.most = num, most
        self._score, self.compare = score, compare
        self.scores: dict = {}
        self.limit = BASE_TRIES + TRIES_EACH * num

    def score(self, weights: Weights) -> float:
        """The score of a setting."""
        if weights not in self.scores:
            self.scores[weights] = self._score(weights)
        return self.scores[weights]

    def finalists(self) -> List[Weights]:
        """What may be best: no module, the best one, all alike, and those
        that have entered one by one; in this order.
        """
        num = self.num
        plain = plain_settings(num, self.most)
        for weights in plain:
            self.score(weights)
        best = max((single(num, i) for i in range(num)), key=self.score)
        return list(dict.fromkeys(
            [plain[0], best, *plain[1 + num:], self._enter(best)]))

    def _enter(self, best: Weights) -> Weights:
        now = bare(self.num)
        while sum(map(bool, now)) < self.most:
            entries = list(self._entries(now))
            if not entries:
                break
            entry = max(entries, key=self.score)
            if not self.compare(entry, now).is_real:
                break
            now = entry
        # nothing has entered: the best module may yet be worth a look
        if not any(now):
            now = max((w for w in self.scores if sum(map(bool, w)) == 1),
                      key=self.score)
        return now

    def _entries(self, now: Weights) -> Iterator[Weights]:
        """Settings with one module more, of the most promising modules."""
        left = [i for i in range(self.num) if not now[i]]
        left.sort(key=lambda i: -self._promise(i))
        cost = len(STRENGTHS) - 1
        # half of what is left, so that more can enter later
        tries = (self.limit - len(self.scores)) // (2 * cost)
        if not tries and self.limit - len(self.scores) >= cost:
            tries = 1
        for module in left[:tries]:
            yield from self._strengths(now, module)

    def _promise(self, module: int) -> float:
        """The best score so far of a setting with a module."""
        return max(score for weights, score in self.scores.items()
                   if weights[module] and sum(map(bool, weights)) == 1)

    def _strengths(self, now: Weights, module: int) -> Iterator[Weights]:
        """A module at its strengths: the middle first, then the better side.
        """

        def at(strength: float) -> Weights:
            return now[:module] + (strength, ) + now[module + 1:]

        low, quarter, half, full = map(at, STRENGTHS)
        yield from (quarter, half)
        if self.score(quarter) >= self.score(half):
            yield low
        if full in self.scores or self.score(quarter) < self.score(half):
            yield full
