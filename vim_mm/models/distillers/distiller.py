# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import logging
from collections import Counter
from itertools import zip_longest
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_width
from vim_mm.utils.messages import short
from ..backbones.probe import in_eval
from .base_distiller import BaseDistiller
from .criteria import (Criterion, Pair, Weight, largest, read_criteria,
                       read_weight, weigh)
from .heads import Logits, is_scores, logits_of
from .layers import LayerReader, Levels
from .outside import build_outside
from .soft_only import blank, split

TEACHER = 'teacher'


@MODELS.register_module()
class Distiller(BaseDistiller):
    """A student that learns from its data and from a trained network.

    Both read the same images, each in its own normalisation.

    Args:
        student (dict): Config of a classifier, detector or segmentor.
        teacher (dict): The trained network, of any library, see
            :func:`build_outside`.
        criteria (Mapping[tuple[str], dict]): What is to be alike:
            ``{(student layer, teacher layer): loss}``. A layer is the path of
            a submodule, with an index where it gives a tuple, such as
            ``backbone[3]``, or ``logits``, the class scores. A loss is the
            config of :class:`LogitsKL`, :class:`CosineSmoothL1`,
            :class:`LinearCKA` or one of the libraries' that takes ``(pred,
            target)``, with the keys of :class:`Criterion`; or a list of such.
        own_weight (float | tuple[float]): What the student's own losses are
            multiplied by, or the first and last such number of the run.
            Defaults to 1.
        probe_size (int): Side of the blank image which tells the shapes of
            layers. Defaults to 224.
        data_preprocessor (dict, optional): See :class:`BaseDistiller`.

    Raises:
        ValueError: If layers do not exist, do not run or cannot meet.
    """

    def __init__(self,
                 student: dict,
                 teacher: dict,
                 criteria: Mapping[Pair, Any],
                 own_weight: Weight = 1.,
                 probe_size: int = 224,
                 data_preprocessor: Optional[dict] = None) -> None:
        pairs = read_criteria(criteria)
        check_width(probe_size, 'probe_size')
        own_weight = read_weight(own_weight, 'model.own_weight')
        super().__init__(student, data_preprocessor)
        self.own_weight = own_weight
        self.add_outside(TEACHER, build_outside(teacher))
        frozen = self.outside[TEACHER].network
        mine, theirs = zip(*(pair for pair, _ in pairs))
        self.reader = LayerReader(self.student, mine, 'student')
        self.teacher_reader = LayerReader(frozen, theirs, TEACHER)
        self._say_fresh()
        self.criteria = self._build_criteria(pairs, probe_size)

    def _say_fresh(self) -> None:
        """Name layers to be alike to that nothing has given weights."""
        fresh = self.outside[TEACHER].fresh
        layers = self.teacher_reader.layers
        read = sorted(name for name, layer in layers.items()
                      if layer.path.split('.')[0] in fresh)
        if read:
            print_log(
                '`teacher` is given no `checkpoint`, and its config names no '
                f'weights for {short(read)}, which the student learns from: '
                'they are random; give the checkpoint of its training.',
                logger='current',
                level=logging.WARNING)

    def _build_criteria(self, pairs: List[Tuple[Pair, dict]],
                        size: int) -> nn.ModuleList:
        frozen = self.outside[TEACHER].network
        student = _dry_run(self.reader, self.student, size)
        teacher = _dry_run(self.teacher_reader, frozen, size)
        # numbered, because `paramwise_cfg` looks for parts' names in those of
        # parameters
        criteria = nn.ModuleList()
        for pair, cfg in pairs:
            mine, theirs = pair
            scores = (is_scores(self.student, mine, student[mine]),
                      is_scores(frozen, theirs, teacher[theirs]))
            criteria.append(
                Criterion(pair, cfg, student[mine], teacher[theirs],
                          (size, size),
                          self._compare_logits() if all(scores) else None,
                          scores))
        return criteria

    def _compare_logits(self) -> Logits:
        """What is alike in the logits of both.

        Raises:
            ValueError: If they mean different things.
        """
        mine = logits_of(self.student, 'student')
        theirs = logits_of(self.outside[TEACHER].network, TEACHER)
        if mine.classes != theirs.classes:
            raise ValueError(
                f'The student scores {mine.classes} classes and the teacher '
                f'{theirs.classes}, so their logits cannot be compared; take '
                'a teacher of the same classes, or compare features.')
        if mine.sigmoid != theirs.sigmoid:
            names = {True: 'each class for itself', False: 'one class of all'}
            raise ValueError(
                f'The student predicts {names[mine.sigmoid]} and the teacher '
                f'{names[theirs.sigmoid]}, so their logits cannot be '
                'compared; give both heads the same kind of loss.')
        return mine

    def check_data(self, metainfo: dict) -> None:
        """See :meth:`BaseDistiller.check_data`.

        Raises:
            ValueError: If logits are compared, and the teacher's belong to
                other classes.
        """
        own, theirs = metainfo.get('classes'), self.outside[TEACHER].classes
        if not own or not theirs or not any(criterion.classes
                                            for criterion in self.criteria):
            return
        for index, pair in enumerate(zip_longest(own, theirs)):
            if pair[0] != pair[1]:
                raise ValueError(
                    f'Class {index} is {pair[0]!r} in the training set and '
                    f'{pair[1]!r} for the teacher, so their logits cannot be '
                    'compared; give the data set the `metainfo` of the '
                    "teacher's, or compare features.")

    def help_weights(self) -> Dict[str, float]:
        """See :meth:`BaseDistiller.help_weights`."""
        return {
            f'criteria.{each.pair}.weight': largest(each.weight)
            for each in self.criteria
        }

    def learns_alone(self) -> bool:
        """See :meth:`BaseDistiller.learns_alone`."""
        return largest(self.own_weight) > 0

    def teaches_head(self) -> bool:
        """See :meth:`BaseDistiller.teaches_head`."""
        return any(criterion.of_scores for criterion in self.criteria)

    # -------------------------------------------------------------- passes

    def loss(self, inputs: Tensor,
             data_samples: Optional[list]) -> Dict[str, Tensor]:
        """The student's own losses and, as ``loss_kd_LAYER``, the criteria."""
        teacher = self._teach(inputs, data_samples)
        losses, student = self._learn(inputs, data_samples)
        seen = Counter()
        for criterion in self.criteria:
            mine, theirs = criterion.pair
            seen[mine] += 1
            number = f'#{seen[mine]}' if seen[mine] > 1 else ''
            losses[f'loss_kd_{mine}{number}'] = criterion(
                student[mine], teacher[theirs], inputs.shape[-2:])
        return losses

    @torch.no_grad()
    def _teach(self, inputs: Tensor,
               data_samples: Optional[list]) -> Dict[str, Levels]:
        teacher = self.outside[TEACHER].on(inputs.device)
        inputs = self.inputs_of(TEACHER, inputs, data_samples)
        return self.teacher_reader.run(teacher, inputs)

    def _learn(
        self, inputs: Tensor, data_samples: Optional[list]
    ) -> Tuple[Dict[str, Any], Dict[str, Levels]]:
        """One pass of the student: own losses, and outputs of its layers."""
        indices, counts = split(data_samples)
        rows, weight = None, weigh(self.own_weight)
        if indices is not None:
            rows = torch.tensor(indices, device=inputs.device)
            data_samples = [data_samples[index] for index in indices]
        if not counts:
            weight = 0.
            data_samples = [blank(self.student, data_samples[0], inputs)]
        with self.reader.listening(self.student, rows) as seen:
            losses = self.student(inputs, data_samples, mode='loss')
        losses = {
            key: _scale(value, weight) if 'loss' in key else value
            for key, value in losses.items()
        }
        if 'loss' in losses:  # which is logged in place of the sum of all
            losses['loss_own'] = losses.pop('loss')
        return losses, self.reader.read(seen)


def _scale(loss: Any, weight: float) -> Any:
    if weight == 1:
        return loss
    if isinstance(loss, Tensor):
        return loss * weight
    return [part * weight for part in loss]


def _dry_run(reader: LayerReader, network: BaseModel,
             size: int) -> Dict[str, Levels]:
    """What the layers give for a blank image."""
    image = torch.zeros(1, 3, size, size)
    try:
        with in_eval(network), torch.no_grad():
            with reader.listening(network) as seen:
                reader.forward(network, image)
    except Exception as error:
        raise ValueError(
            f'The {reader.who} {type(network).__name__} does not read a '
            f'blank image of {size} x {size} pixels ({error}); set '
            '`probe_size` to a side that it reads.') from error
    return reader.read(seen)
