# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which modules help a task, tried on held-out halves of its images."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Callable, Dict, List, Optional, Union

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader

from vim_mm.evaluation.paired import HeldOut, gain
from vim_mm.evaluation.ridge import held_out_score
from vim_mm.evaluation.strengths import (Gain, Search, Weights, bare,
                                         plain_settings, single, uniform)
from vim_mm.evaluation.unlike_halves import DEALS, unlike_halves
from vim_mm.features.module_rows import TRUNK, UNIFORM, ModuleFeatures
from vim_mm.features.rows import kind_of
from vim_mm.features.score_cache import ScoreCache, digest
from .head_scores import STEPS, OwnHead, outside_backbone
from .model_parts import extra_tokens, fused_features, fusing_part

#: Splits that a task's own head is warmed on.
HEAD_DEALS = 1
#: Of that head, if the run does not warm its own.
HEAD_OPTIMIZER = dict(type='AdamW', lr=1e-3, weight_decay=1e-4)
NOTHING_HELPS = 'none of these helps: use the frozen trunk'
#: Weights, or the name that the weights are remembered by that modules have.
Setting = Union[Weights, str]


@dataclass
class Choice:
    """What to weigh modules, and why.

    Attributes:
        weights (dict[str, float]): By module; all zero if none helps.
        scores (dict[str, float]): Of the bare trunk, each module alone, all
            alike, and what has been chosen.
        gain (Gain): Of the choice over the bare trunk.
        tries (int): Settings that were scored.
        passes (float): Passes of the images through the trunk.
    """
    weights: Dict[str, float]
    scores: Dict[str, float]
    gain: Gain
    tries: int
    passes: float

    def __str__(self) -> str:
        used = {name: w for name, w in self.weights.items() if w}
        costs = f'{self.tries} settings, {self.passes:.1f} passes of the trunk'
        if not used:
            return f'{NOTHING_HELPS} ({costs})'
        each = ', '.join(f'{name} at {w:g}' for name, w in used.items())
        return (f'{each}: {self.gain.value:+.3f} over the frozen trunk, '
                f'noise {self.gain.noise:.3f} ({costs})')


class ModuleTrials:
    """Scores of a task's modules at any weights, each computed once.

    A closed-form head is fitted on one half of the images and judged on the
    other, see :func:`held_out_score`. In detection it says which settings are
    worth a closer look, and the task's own head decides, see
    :class:`OwnHead`. All processes come to the same scores.

    Args:
        features (ModuleFeatures): Of the images.
        deals (int): Splits, see :func:`unlike_halves`. Defaults to 8.
        head_optimizer (dict): Config of the optimizer of the task's own head.
        alone (bool): Whether each module is looked at alone. Defaults to
            True.
        kind (str): What weights are of: 'sum', of what modules add, or
            'merge', of their parameters. Defaults to 'sum'.
        cache (str, optional): Folder where scores are kept, and looked up
            before anything is computed. Defaults to None.
    """

    def __init__(self,
                 features: ModuleFeatures,
                 deals: int = DEALS,
                 head_optimizer: dict = HEAD_OPTIMIZER,
                 alone: bool = True,
                 kind: str = 'sum',
                 cache: Optional[str] = None) -> None:
        self.features, self.deals = features, deals
        self.head_optimizer = head_optimizer
        self.names, self.most = features.modules, features.most
        self.device = next(features.model.parameters()).device
        self.alone = alone
        self._found: Dict[Any, Optional[HeldOut]] = {}
        self._reason: Optional[ValueError] = None
        self.cache = ScoreCache(
            cache,
            digest((*features.identity(), f'{deals} {alone} {kind}')))

    @classmethod
    def of_task(cls,
                model: BaseModel,
                loader: DataLoader,
                num_extra_tokens: Optional[int] = None,
                max_pictures: Optional[int] = None,
                alone: bool = True,
                **kwargs: Any) -> 'ModuleTrials':
        """Trials of the modules that a model's running task weighs.

        Args:
            model (BaseModel): Not wrapped, in eval mode.
            loader (DataLoader): Of the training set.
            num_extra_tokens (int, optional): Class and register tokens, for
                pooling; the trunk's own when None.
            max_pictures (int, optional): See :class:`ModuleFeatures`.
            alone (bool): As for the class. If not, gates stay as they are.
            **kwargs: As for the class.
        """
        part = fusing_part(model)
        fusion, task = part.fusion, part.task
        device = next(fusion.parameters()).device

        def weigh(weights: Weights) -> None:
            fusion.set_weights(task, torch.tensor(weights, device=device))

        features = ModuleFeatures(
            model, loader, fusion.task_modules[task],
            partial(fused_features, model), weigh,
            fusion.most(task) if alone else 0,
            extra_tokens(model, num_extra_tokens), max_pictures)
        kind = 'merge' if fusion.merges else 'sum'
        return cls(features, alone=alone, kind=kind, **kwargs)

    @cached_property
    def rows(self) -> Dict[Weights, Tensor]:
        """Features of the rows without modules and with each alone."""
        num = len(self.names)
        singles = [single(num, i) for i in range(num)] if self.alone else []
        return {
            weights: self.features.rows(weights)
            for weights in (bare(num), *singles)
        }

    @cached_property
    def _halves(self) -> Optional[Tensor]:
        """Halves that look unlike to the trunk and all modules together."""
        usable = [x for x in self.rows.values() if tells_apart(x)]
        try:
            return unlike_halves(usable, self.features.labels,
                                 self.features.picture, self.deals)
        except ValueError as error:
            self._reason = error
            return None

    @property
    def is_det(self) -> bool:
        """Whether the task's own head decides."""
        first = next(self.features.batches(self.features.bare))
        return kind_of(first.data_samples[0]) == 'det'

    # --------------------------------------------------------------- scores

    def ridge(self, setting: Setting) -> float:
        """Score of a closed-form head, mean over processes."""
        if setting not in self._found:
            self._found[setting] = self._kept('ridge', self._ridge, setting)
        return self._mean(self._found[setting])

    def _ridge(self, setting: Setting) -> HeldOut:
        x, picture = self.rows.get(setting), self.features.picture
        if x is None:
            x = self.features.rows(_weights(setting))
        if not tells_apart(x):
            return HeldOut(0., torch.zeros(len(picture.unique())))
        return held_out_score(x, self.features.labels, self._halves, picture)

    def own_head(self, setting: Setting) -> float:
        """Score of the task's own head, mean over processes."""
        if ('head', setting) not in self._found:
            start = '' if isinstance(setting, str) else digest(
                (f'{self.head_optimizer} {STEPS}',
                 *outside_backbone(self.features.model).values()))
            self._found['head', setting] = self._kept(
                f'head {start}', self._own_head, setting)
        return self._mean(self._found['head', setting])

    def _own_head(self, setting: Setting) -> HeldOut:
        picture, num = self.features.picture, self.features.num_pictures
        halves = torch.zeros(len(self._halves), num, dtype=torch.bool)
        halves[:, picture] = self._halves
        head = OwnHead(self.features.model, halves[:HEAD_DEALS],
                       self.head_optimizer)
        return head.score(list(self.features.batches(_weights(setting))))

    def final(self, setting: Setting) -> float:
        """The score that decides."""
        return (self.own_head if self.is_det else self.ridge)(setting)

    def _kept(self, name: str, score: Callable[[Setting], HeldOut],
              setting: Setting) -> Optional[HeldOut]:
        """A score, from the cache if it is there."""
        key = name, setting
        entry = self.cache.get(key)
        if entry is not None:
            return HeldOut(entry[0], torch.tensor(entry[1:]).double())
        found = self._try(score, setting)
        # what modules weigh now is no key
        if found is not None and not isinstance(setting, str):
            self.cache.put(key, [found.value, *found.parts.tolist()])
        return found

    def _try(self, score: Callable[[Setting], HeldOut],
             setting: Setting) -> Optional[HeldOut]:
        """A score, None if the images of this process do not allow it.

        It must not leave the others waiting.
        """
        if self._halves is None:
            return None
        try:
            return score(setting)
        except ValueError as error:
            self._reason = error
            return None

    def _mean(self, found: Optional[HeldOut]) -> float:
        able = found is not None
        total, count = self._sum(found.value if able else 0., float(able))
        if not count:
            raise self._reason
        return total / count

    def _sum(self, *values: float) -> List[float]:
        """Over processes."""
        total = torch.tensor(values, dtype=torch.double, device=self.device)
        all_reduce(total)
        return total.tolist()

    def compare(self, new: Setting, old: Setting) -> Gain:
        """The gain in :meth:`ridge` of one setting over another."""
        return self._compare(self._found[new], self._found[old])

    def compare_final(self, new: Setting, old: Setting) -> Gain:
        """The gain in :meth:`final` of one setting over another."""
        if not self.is_det:
            return self.compare(new, old)
        return self._compare(self._found['head', new],
                             self._found['head', old])

    def _compare(self, new: Optional[HeldOut],
                 old: Optional[HeldOut]) -> Gain:
        values = (0., 0., 0.)
        if new is not None and old is not None:
            value, noise = gain(new, old)
            values = value, noise**2, 1.
        value, variance, count = self._sum(*values)
        return Gain(value / count, variance**.5 / count)

    # --------------------------------------------------------------- choice

    def named(self, weights: Weights) -> str:
        """What a setting is called in tables."""
        num = len(self.names)
        if weights == bare(num):
            return TRUNK
        if num > 1 and weights == uniform(num):
            return UNIFORM
        return self.names[weights.index(1.)]

    def plain_scores(self) -> Dict[str, float]:
        """The score that decides of no module, each alone, all alike."""
        return {
            self.named(weights): self.final(weights)
            for weights in plain_settings(len(self.names), self.most)
        }

    def weigh(self, weights: Weights) -> None:
        """Leave the modules weighed so."""
        self.features.weigh(weights)

    def choose(self) -> Choice:
        """Find weights, and leave the modules weighed so."""
        num = len(self.names)
        search = Search(num, self.most, self.ridge, self.compare)
        trunk, *others = search.finalists()
        for weights in (trunk, *others):
            self.final(weights)
        helping = [
            weights for weights in others
            if self.compare_final(weights, trunk).is_real
        ]
        chosen = max(helping, key=self.final, default=trunk)
        self.weigh(chosen)
        return Choice(
            dict(zip(self.names, chosen)), {
                self.named(weights): self.ridge(weights)
                for weights in plain_settings(num, self.most)
            }, self.compare_final(chosen, trunk), len(search.scores),
            self.features.passes)


def _weights(setting: Setting) -> Optional[Weights]:
    return None if isinstance(setting, str) else setting


def tells_apart(x: Tensor) -> bool:
    """Whether features of rows, (n, d), are finite and not all the same."""
    return bool(torch.isfinite(x).all() and (x != x[0]).any())
