# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is to be alike in a student and its teacher."""

from typing import Any, Iterator, List, Mapping, Optional, Tuple, Union

from mmengine.logging import MessageHub
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config, check_number
from .heads import LOGITS, Logits
from .layers import Levels
from .losses import refuse_labels, refuse_scores, refuse_softmax
from .projectors import meet

#: Whose losses read rows of features, (N, C).
_LIBRARIES = ('mmdet.', 'mmpretrain.', 'mmseg.')
Weight = Union[float, Tuple[float, float]]
Pair = Tuple[str, str]


def read_criteria(criteria: Mapping[Pair, Any]) -> List[Tuple[Pair, dict]]:
    """Pairs of layers, and the config of a loss of each.

    Args:
        criteria (Mapping): ``{(student layer, teacher layer): loss}``, or a
            list of losses. A pair may be text, which is what a key becomes in
            ``--cfg-options "model.criteria.(logits,logits).tau=2"``; its
            settings then go on top of those of the pair itself.

    Raises:
        ValueError: If it is of another form.
    """
    if not isinstance(criteria, Mapping) or not any(
            given or given == {} for given in criteria.values()):
        raise ValueError(
            f'`model.criteria` is {criteria!r}; give {{(student layer, '
            'teacher layer): loss}.')
    losses = {}
    for key, given in criteria.items():
        for pair, loss in _read_key(key, given):
            if isinstance(key, str) and pair in losses:
                check_is_config(losses[pair], f'model.criteria.{pair}')
                loss = dict(losses[pair], **loss)
            losses[pair] = loss
    pairs = []
    for pair, given in losses.items():
        for loss in given if isinstance(given, (list, tuple)) else [given]:
            check_is_config(loss, f'model.criteria.{pair}')
            if 'type' not in loss:
                raise ValueError(
                    f'The loss of `model.criteria.{pair}` has no '
                    "`type`; name one, such as 'vim_mm.LogitsKL'.")
            pairs.append((pair, dict(loss)))
    return pairs


def _read_key(key: Any, given: Any) -> Iterator[Tuple[Pair, Any]]:
    pair = key
    if isinstance(key, str) and key.startswith('('):
        if not key.endswith(')') and isinstance(given, Mapping):
            # options are cut at every dot, those of layers too
            for rest, inner in given.items():
                yield from _read_key(f'{key}.{rest}', inner)
            return
        pair = tuple(name.strip() for name in key[1:-1].split(','))
    if not isinstance(pair, tuple) or len(pair) != 2 \
            or not all(isinstance(name, str) for name in pair):
        raise ValueError(f'`model.criteria` has the key {key!r}; give a pair, '
                         '(student layer, teacher layer).')
    yield pair, given


class Criterion(nn.Module):
    """A loss between a layer of a student and one of its teacher.

    Args:
        pair (tuple[str]): The two layers.
        cfg (dict): Config of the loss: ``weight``, a number or the first and
            last one of the run, between which it changes evenly, 1 if left
            out; ``projector``, config of what is put behind the student's
            layer, a :class:`LinearProjector` where widths differ if left out;
            ``type`` and whatever else it takes.
        student (tuple[Tensor]): What the student's layer gave in a dry run.
        teacher (tuple[Tensor]): The same of the teacher.
        picture (tuple[int]): Height and width of that run's images.
        logits (Logits, optional): If both are class scores of this kind.
            Defaults to None.
        scores (tuple[bool]): Which of both are class scores, by whatever
            name. Defaults to both if ``logits`` is given, to none otherwise.

    Raises:
        ValueError: If the layers cannot meet, or are no such as the loss
            compares.
    """

    def __init__(self,
                 pair: Pair,
                 cfg: dict,
                 student: Levels,
                 teacher: Levels,
                 picture: Tuple[int, int],
                 logits: Optional[Logits] = None,
                 scores: Optional[Tuple[bool, bool]] = None) -> None:
        super().__init__()
        self.pair = pair
        self.classes = logits and logits.classes
        cfg = dict(cfg)
        self.weight = read_weight(
            cfg.pop('weight', 1.), f'model.criteria.{pair}.weight')
        projector = cfg.pop('projector', None)
        if logits and hasattr(MODELS.get(cfg['type']), 'of_logits'):
            cfg.setdefault('sigmoid', logits.sigmoid)
        self.loss = MODELS.build(cfg)
        if logits:
            refuse_labels(self.loss, f'`model.criteria.{pair}`')
            if logits.classes == 1:
                refuse_softmax(self.loss, cfg, f'`model.criteria.{pair}`')
        scores = scores or (logits is not None, ) * 2
        #: Whether the student's layer gives class scores.
        self.of_scores = scores[0]
        self._check_scores(scores)
        widths = [(mine.shape[-1], theirs.shape[-1])
                  for mine, theirs in self._meet(student, teacher, picture)]
        self.projectors = self._build_projectors(widths, projector)

    def _check_scores(self, scores: Tuple[bool, bool]) -> None:
        """Refuse class scores beside features, or where a loss reads others.
        """
        which = {True: 'class scores', False: 'features'}
        mine, theirs = self.pair
        if scores[0] != scores[1]:
            raise ValueError(
                f"The student's layer '{mine}' gives {which[scores[0]]}, and "
                f"the teacher's '{theirs}' {which[scores[1]]}; name two "
                f"layers of one kind in `model.criteria`, '{LOGITS}' or "
                "such as 'backbone[3]'.")
        if not scores[0]:
            refuse_scores(self.loss, f'`model.criteria.{self.pair}`')

    def _build_projectors(self, widths: List[Tuple[int, int]],
                          projector: Optional[dict]) -> nn.ModuleList:
        if projector is None:
            if getattr(self.loss, 'any_width', False) or all(
                    mine == theirs for mine, theirs in widths):
                return nn.ModuleList()
            if self.classes:
                raise ValueError(
                    f'At each place of level 0 the student gives '
                    f'{widths[0][0]} scores and the teacher {widths[0][1]}, '
                    'so their logits cannot be compared; take a teacher of '
                    'the same classes and anchors, or compare features.')
            projector = dict(type='vim_mm.LinearProjector')
        return nn.ModuleList(
            MODELS.build(
                dict(projector, in_channels=mine, out_channels=theirs))
            for mine, theirs in widths)

    def forward(self, student: Levels, teacher: Levels,
                picture: Tuple[int, int]) -> Tensor:
        """The loss, mean over levels and times its weight now.

        Args:
            student (tuple[Tensor]): What the student's layer gave.
            teacher (tuple[Tensor]): What the teacher's layer gave.
            picture (tuple[int]): Height and width of the images.
        """
        losses = []
        for level, tokens in enumerate(self._meet(student, teacher, picture)):
            mine, theirs = tokens
            if self.projectors:
                mine = self.projectors[level](mine)
            if self.classes:
                # those of each anchor for themselves
                mine, theirs = (
                    scores.unflatten(-1, (-1, self.classes)).flatten(1, 2)
                    for scores in (mine, theirs))
            if type(self.loss).__module__.startswith(_LIBRARIES):
                mine, theirs = mine.flatten(0, 1), theirs.flatten(0, 1)
            losses.append(self.loss(mine, theirs))
        return weigh(self.weight) * sum(losses) / len(losses)

    def _meet(self, student: Levels, teacher: Levels,
              picture: Tuple[int, int]) -> List[Tuple[Tensor, Tensor]]:
        mine, theirs = self.pair
        if len(student) != len(teacher):
            raise ValueError(
                f"The student's layer '{mine}' gives {len(student)} outputs "
                f"and the teacher's '{theirs}' {len(teacher)}; name one of "
                "each by its index, as in 'backbone[3]'.")
        for level, other in zip(student, teacher):
            if len(level) != len(other):
                raise ValueError(
                    f"The student's layer '{mine}' gives {len(level)} rows "
                    f"and the teacher's '{theirs}' {len(other)}; name layers "
                    'that give one for each image of a batch.')
        try:
            return [meet(*levels, picture) for levels in zip(student, teacher)]
        except ValueError as error:
            raise ValueError(
                f'The layers {self.pair} cannot meet: {error}') from None


def read_weight(weight: Any, what: str) -> Weight:
    """Check a number, or the first and the last one of a run.

    Raises:
        ValueError: If it is neither.
    """
    pair = isinstance(weight, (list, tuple))
    if pair and len(weight) != 2:
        raise ValueError(f'`{what}` is {weight!r}; give a number, or the '
                         'first and the last one of the run.')
    for number in weight if pair else [weight]:
        check_number(number, what)
    return tuple(weight) if pair else weight


def weigh(weight: Weight) -> float:
    """A weight at this step of the run."""
    if not isinstance(weight, tuple):
        return weight
    hub = MessageHub.get_current_instance()
    steps, step = hub.get_info('max_iters', 1), hub.get_info('iter', 0)
    first, last = weight
    return first + (last - first) * min(step / max(steps - 1, 1), 1.)


def largest(weight: Weight) -> float:
    """The largest weight of a run."""
    return max(weight) if isinstance(weight, tuple) else weight
