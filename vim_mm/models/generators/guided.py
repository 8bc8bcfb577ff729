# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images generated from guides, for a frozen teacher."""

import math
from contextlib import ExitStack
from copy import deepcopy
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_arguments, check_number
from vim_mm.utils.seeds import STEP, torch_stream
from .motion import Motion, Move, move_images, move_sample
from .objective import WEIGHTS, Guide, Objective
from .statistics import LayerStatistics
from .teacher import Teacher
from .tokens import TokenDropping, TokenStream


class Generated(NamedTuple):
    """What came of a batch of guides.

    Attributes:
        images (Tensor): (B, 3, H, W), RGB from 0 to 1.
        losses (list[dict[str, float]]): Of each image: the loss it started
            with (``start``) and has in the end (``loss``), and its terms.
        history (list[float]): Mean loss of the batch, step by step.
    """
    images: Tensor
    losses: List[Dict[str, float]]
    history: List[float]


@MODELS.register_module()
class GuidedGenerator:
    """Downstream image-guided generation (DIGG).

    An image starts at a downstream image, its guide, and is changed so that
    the frozen teacher sees in it what the guide's annotation says, in inputs
    that its layers expect. The annotation stays valid: nothing is moved away.
    The form is that of DeepInversion from a real image; the paper that named
    DIGG gives none. Learning rate and number of steps are about a tenth of
    what a start from noise needs. Of all steps the image of the lowest loss
    is kept; with motion or dropping, where each step sees another view, the
    last one.

    The images of a batch share the statistics of layers and nothing else:
    without that term an image does not depend on the batch it is made in.
    (Losses that draw at random, such as samplers of two-stage detectors,
    draw in the order of the batch.)

    Args:
        canvas (dict): What is optimised: ``PixelCanvas``, ``PyramidCanvas``
            or ``LatentCanvas``. Defaults to pixels.
        iterations (int): Steps of the optimiser; none gives the guides, bit
            for bit. Defaults to 200.
        lr (float): Highest learning rate of Adam, in units of an image from
            0 to 1. Defaults to 0.005.
        betas (tuple[float]): Of Adam. Defaults to (0.5, 0.9).
        warmup (float): Share of the steps in which the rate rises; it then
            falls to zero as a cosine. Defaults to 0.1.
        weights (dict): Of the terms, see :class:`Objective`; others keep
            :data:`WEIGHTS`.
        layers (str, optional): Pattern for the teacher's layers that guide.
            Defaults to None, which is no guidance by features.
        statistics (dict): Arguments of :class:`LayerStatistics`.
        imitate (bool, optional): Whether the teacher's outputs on the guide
            stand in for its annotation. Defaults to None: where there is
            none.
        motion (dict): Arguments of :class:`Motion`. Guides are moved along,
            which costs a pass of the teacher without gradients a step.
        tokens (dict, optional): Arguments of :class:`TokenDropping`.
        noise (float): Deviation of the noise that is added to the start.
            Defaults to 0.

    Raises:
        ValueError: If a setting has no meaning.
    """

    def __init__(self,
                 canvas: dict = dict(type='vim_mm.PixelCanvas'),
                 iterations: int = 200,
                 lr: float = 0.005,
                 betas: Tuple[float, float] = (0.5, 0.9),
                 warmup: float = 0.1,
                 weights: dict = {},
                 layers: Optional[str] = None,
                 statistics: dict = {},
                 imitate: Optional[bool] = None,
                 motion: dict = {},
                 tokens: Optional[dict] = None,
                 noise: float = 0.) -> None:
        for what, value in (('iterations', iterations), ('lr', lr), ('noise',
                                                                     noise)):
            check_number(value, what)
        check_number(warmup, 'warmup', below=1)
        if imitate not in (None, True, False):
            raise ValueError(f'`imitate` is {imitate!r}; give True, False or '
                             'None.')
        for index, beta in enumerate(betas):
            check_number(beta, f'betas[{index}]', below=1)
        for name, weight in weights.items():
            check_number(weight, f'weights.{name}')
        unknown = sorted(set(weights) - set(WEIGHTS))
        if unknown:
            raise ValueError(f'`weights` has {", ".join(unknown)}; there are '
                             f'{", ".join(WEIGHTS)}.')
        check_arguments(LayerStatistics, statistics, inner=('model', ))
        check_arguments(Motion, motion)
        check_arguments(TokenDropping, tokens or {})
        self.canvas = MODELS.build(canvas) if isinstance(canvas,
                                                         dict) else canvas
        self.iterations = int(iterations)
        self.lr, self.betas = lr, tuple(betas)
        self.warmup = warmup
        self.weights = dict(WEIGHTS, **weights)
        self.layers = layers
        self.statistics = dict(statistics)
        self.imitate = imitate
        self.motion = Motion(**motion)
        self.tokens = None if tokens is None else TokenDropping(**tokens)
        self.noise = noise
        self.objective: Optional[Objective] = None

    @property
    def is_random(self) -> bool:
        """Whether two images of one guide differ."""
        return bool(self.iterations) and bool(self.noise or self.motion
                                              or self.tokens)

    def set_teacher(self,
                    teacher: BaseModel,
                    student: Optional[BaseModel] = None) -> None:
        """Say for whom images are generated; both models are frozen.

        Args:
            teacher (BaseModel): Any mm* model.
            student (BaseModel, optional): Looks at the images too, for the
                term ``agreement``.

        Raises:
            ValueError: If the teacher lacks what a term reads, a term its
                student, or no term weighs anything.
        """
        weights = self.weights
        known = dict(weights, guidance=weights['guidance'] * bool(self.layers))
        if self.iterations and not any(known.values()):
            raise ValueError(
                'All `weights` of terms are 0, or that of `guidance` is the '
                'only one and there are no `layers`, so nothing would change '
                'the images; give one of them more.')
        if weights['agreement'] and student is None:
            raise ValueError('`weights.agreement` compares the teacher with a '
                             'student, and none is given; give one, or '
                             'agreement=0.')
        seen_by = Teacher(teacher, self.layers)
        statistics = LayerStatistics(
            teacher, **self.statistics) if weights['statistics'] else None
        self.objective = Objective(
            seen_by,
            weights,
            statistics=statistics,
            student=Teacher(student) if weights['agreement'] else None,
            imitate=self.imitate,
            stream=None if self.tokens is None else TokenStream(
                self.tokens, teacher.backbone,
                statistics.layers if statistics else {}))

    def collect(self, batches: Iterable[tuple]) -> None:
        """See :meth:`Objective.collect`; needs to run before images are made.

        Args:
            batches (Iterable[tuple]): Downstream images (B, 3, H, W), RGB
                from 0 to 1, and their data samples.
        """
        self.objective.collect(batches)

    def generate(
            self,
            guides: Tensor,
            samples: Sequence[BaseDataElement],
            keys: Optional[Sequence[Tuple[int, ...]]] = None) -> Generated:
        """Make an image of each guide.

        Args:
            guides (Tensor): (B, 3, H, W), RGB from 0 to 1.
            samples (Sequence[BaseDataElement]): Their data samples.
            keys (Sequence[tuple[int]], optional): What is random about each
                image depends on its key alone. Defaults to 0, 1, ...
        """
        if not self.iterations:
            return Generated(guides.clone(), [{} for _ in guides], [])
        for sample in samples:
            self.motion.check(sample)
        keys = keys or [(index, ) for index in range(len(guides))]
        draws = [torch_stream(STEP, *key) for key in keys]
        noise = None
        if self.noise:
            noise = self.noise * torch.stack([
                torch.randn(guides.shape[1:], generator=draw) for draw in draws
            ]).to(guides)
        self.canvas.to(guides.device).start(guides, noise)
        return self._optimise(guides, list(samples), draws)

    def _optimise(self, guides: Tensor, samples: List[BaseDataElement],
                  draws: List[torch.Generator]) -> Generated:
        still = self.objective.read_guide(guides, samples)
        if self.tokens is not None:
            self.objective.stream.saliency = None
            spare = [torch_stream(STEP) for _ in draws]
            self.objective.check_dropping(guides, samples, spare)
        with self.objective.stream.reading() if self.tokens else ExitStack():
            start = self._measure(self.canvas().detach(), samples, still)
        best = Best(self.canvas().detach())
        optimizer = torch.optim.Adam(
            self.canvas.parameters(), lr=self.lr, betas=self.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        history = []
        for step in range(self.iterations):
            images = self.canvas()
            loss = self._step(images, guides, samples, still, draws,
                              self._drops(step))
            best.see(images, loss)
            history.append(float(loss.detach().mean()))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        images = self.canvas().detach()
        if not (self.motion or self.tokens):
            with torch.no_grad():
                best.see(images, self.objective(images, samples, still)[0])
            images = best.images
        losses = self._measure(images, samples, still)
        for own, first in zip(losses, start):
            own['start'] = first['loss']
        return Generated(images, losses, history)

    def _step(self, images: Tensor, guides: Tensor,
              samples: List[BaseDataElement], guide: Guide,
              draws: List[torch.Generator], drop: bool) -> Tensor:
        """Gradients of a step; returns the loss of each image."""
        if self.motion:
            moves = [self.motion.draw(draw) for draw in draws]
            images, samples, guide = self._move(images, guides, samples, moves)
        stream = self.objective.stream
        if drop:
            stream.draw(images, draws)
            images.retain_grad()
        loss, _ = self.objective(images, samples, guide, drop)
        loss.sum().backward()
        if drop:
            stream.learn(images.grad)
        return loss

    def _move(self, images: Tensor, guides: Tensor,
              samples: List[BaseDataElement], moves: List[Move]) -> tuple:
        samples = deepcopy(list(samples))
        for sample, move in zip(samples, moves):
            move_sample(sample, move, images.shape[3])
        guide = self.objective.read_guide(move_images(guides, moves), samples)
        return move_images(images, moves), samples, guide

    @torch.no_grad()
    def _measure(self, images: Tensor, samples: List[BaseDataElement],
                 guide: Guide) -> List[Dict[str, float]]:
        """The loss of each image and its terms, unmoved, with all tokens."""
        loss, terms = self.objective(images, samples, guide)
        values = dict(loss=loss, **terms)
        return [{
            name: float(value[index])
            for name, value in values.items()
        } for index in range(len(images))]

    def _drops(self, step: int) -> bool:
        return self.tokens is not None and \
            step < self.tokens.until * self.iterations

    def _factor(self, step: int) -> float:
        """The learning rate of a step, relative to the highest.

        Where tokens are dropped it is divided by the share that is kept: a
        pixel has a gradient in so many steps, and moves as far.
        """
        kept = 1 - self.tokens.share if self._drops(step) else 1
        rising = self.warmup * self.iterations
        if step < rising:
            return (step + 1) / (rising + 1) / kept
        done = (step - rising) / max(1., self.iterations - rising)
        return (1 + math.cos(math.pi * done)) / 2 / kept


class Best:
    """Of each image the one with the lowest loss so far.

    Args:
        images (Tensor): What there is before any loss is known.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.clone()
        self.loss = images.new_full((len(images), ), math.inf)

    @torch.no_grad()
    def see(self, images: Tensor, loss: Tensor) -> None:
        """Look at images and their losses."""
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.images = torch.where(better[:, None, None, None], images,
                                  self.images)
