# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What generated images are judged by."""

from contextlib import ExitStack
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from .priors import agreement, norm, total_variation
from .statistics import LayerStatistics
from .teacher import Pass, Teacher, is_labelled
from .tokens import TokenStream

#: The terms, and what each weighs unless a config says otherwise.
WEIGHTS: Mapping[str, float] = dict(
    task=1., statistics=0.01, guidance=1., tv=1e-4, l2=1e-5, agreement=0.)


class Guide(NamedTuple):
    """What generated images are compared with.

    Attributes:
        guidance (dict[str, list[Tensor]]): Outputs of the named layers.
        outputs (list[Tensor]): Of the head; empty where there is a label.
    """
    guidance: Dict[str, List[Tensor]]
    outputs: List[Tensor]


class Objective:
    """The loss of images, term by term.

    ``task`` is the teacher's own loss for the annotation of the guide, or
    without one how unlike its outputs are to those on the guide;
    ``statistics`` see :class:`LayerStatistics`; ``guidance`` the squared
    difference of the features of named layers from the guide's, per number;
    ``tv`` and ``l2`` total variation and norm of the normalised image;
    ``agreement`` of teacher and student, see :func:`agreement`.

    Args:
        teacher (Teacher): The teacher.
        weights (Mapping[str, float]): Of the terms; one of zero is not
            computed.
        statistics (LayerStatistics, optional): For the term of that name.
        student (Teacher, optional): For ``agreement``.
        imitate (bool, optional): Whether annotations are not looked at.
            Defaults to None, which is where there are none.
        stream (TokenStream, optional): Drops tokens.
    """

    def __init__(self,
                 teacher: Teacher,
                 weights: Mapping[str, float],
                 statistics: Optional[LayerStatistics] = None,
                 student: Optional[Teacher] = None,
                 imitate: Optional[bool] = None,
                 stream: Optional[TokenStream] = None) -> None:
        self.teacher = teacher
        self.weights = {k: w for k, w in weights.items() if w}
        self.statistics = statistics
        self.student = student
        self.imitate = imitate
        self.stream = stream

    @torch.no_grad()
    def collect(self, batches: Iterable[tuple]) -> None:
        """Collect statistics that layers expect and have none of.

        Args:
            batches (Iterable[tuple]): Downstream images and data samples.
        """
        if self.statistics is None or self.statistics.is_complete:
            return

        def passes() -> Iterable[dict]:
            for images, samples in batches:
                with self.statistics.watching() as seen:
                    seen_by = self.teacher.see(images, samples)
                    self.teacher.outputs(seen_by)
                yield seen

        self.statistics.collect(passes())

    def imitates(self, samples: List[BaseDataElement]) -> bool:
        """Whether outputs on the guides stand in for annotations."""
        if self.imitate is None:
            return not all(map(is_labelled, samples))
        return self.imitate

    @torch.no_grad()
    def read_guide(self, images: Tensor,
                   samples: List[BaseDataElement]) -> Guide:
        """Run the teacher on the guides, which are compared with."""
        with ExitStack() as stack:
            if self.stream is not None:
                stack.enter_context(self.stream.reading())
            seen = self.teacher.see(images, samples)
        outputs: List[Tensor] = []
        if self.weights.get('task') and self.imitates(samples):
            outputs = self.teacher.outputs(seen)
        return Guide(seen.guidance, outputs)

    @torch.no_grad()
    def check_dropping(self, images: Tensor, samples: List[BaseDataElement],
                       draws: List[torch.Generator]) -> None:
        """Refuse a teacher whose blocks need all tokens.

        Args:
            images (Tensor): Guides, which have been read.
            samples (list[BaseDataElement]): Their data samples.
            draws (list[torch.Generator]): Of each image.

        Raises:
            ValueError: If they do.
        """
        try:
            self.stream.draw(images, draws)
            with self.stream.dropping_tokens():
                self.teacher.see(images, samples)
        except (AssertionError, RuntimeError, ValueError) as error:
            said = str(error).strip() or type(error).__name__
            raise ValueError(
                'The blocks of the teacher cannot leave tokens out; set '
                f'tokens=None ({said.splitlines()[0]}).') from error

    def __call__(self,
                 images: Tensor,
                 samples: List[BaseDataElement],
                 guide: Guide,
                 drop: bool = False) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The loss of each image, and its terms before they are weighed.

        Args:
            images (Tensor): (B, 3, H, W), RGB from 0 to 1.
            samples (list[BaseDataElement]): Their annotations.
            guide (Guide): Of guides that were moved alike.
            drop (bool): Whether tokens are dropped. Defaults to False.

        Returns:
            tuple[Tensor, dict[str, Tensor]]: Shapes (B, ).
        """
        terms: Dict[str, Tensor] = {}
        with ExitStack() as stack:
            if self.statistics is not None:
                read = stack.enter_context(self.statistics.watching())
            with self.stream.dropping_tokens() if drop else ExitStack():
                seen = self.teacher.see(images, samples)
            outputs = self._judge(seen, samples, guide, terms)
        if self.statistics is not None:
            apart = self.statistics(
                read, self.stream.whole if drop else None)
            terms['statistics'] = apart.expand(len(images))
        if self.teacher.layers and 'guidance' in self.weights:
            terms['guidance'] = self._guidance(seen, guide, drop)
        height, width = images.shape[2:]
        shown = seen.inputs[..., :height, :width]
        terms.update(tv=total_variation(shown), l2=norm(shown))
        if self.student is not None and 'agreement' in self.weights:
            terms['agreement'] = self._agreement(images, samples, outputs)
        terms = {k: v for k, v in terms.items() if k in self.weights}
        total = sum(self.weights[name] * term for name, term in terms.items())
        return total, terms

    def _judge(self, seen: Pass, samples: List[BaseDataElement], guide: Guide,
               terms: Dict[str, Tensor]) -> List[Tensor]:
        """Put the task's term beside the others; return outputs if read."""
        imitates = self.imitates(samples)
        outputs: List[Tensor] = []
        if 'agreement' in self.weights or imitates:
            outputs = self.teacher.outputs(seen)
        if 'task' in self.weights:
            terms['task'] = self.teacher.unlike(
                outputs, guide.outputs) if imitates else \
                self.teacher.losses(seen)
        return outputs

    def _guidance(self, seen: Pass, guide: Guide, drop: bool) -> Tensor:
        total = seen.inputs.new_zeros(len(seen.inputs))
        for name, layer in self.teacher.layers.items():
            for x, y in zip(seen.guidance[name], guide.guidance[name]):
                if drop and x.dim() == 3:
                    if layer in self.stream.modules.values():
                        x = self.stream.take(x)
                    if x.shape[1] < y.shape[1]:
                        y = self.stream.take(y)
                total = total + (x - y).square().flatten(1).mean(1)
        return total

    def _agreement(self, images: Tensor, samples: List[BaseDataElement],
                   outputs: List[Tensor]) -> Tensor:
        own = self.student.outputs(self.student.see(images, samples))
        return agreement(outputs[0], own[0])
