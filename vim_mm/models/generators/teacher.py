# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trained mm* model as images see it: differentiable, image by image."""

from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmengine.utils import apply_to
from torch import Tensor

from vim_mm.utils.kinds import KINDS
from ..patterns import match_names
from ..recorder import tapping
from .priors import divergence


class Pass(NamedTuple):
    """What a network made of a batch of images before its head.

    Attributes:
        inputs (Tensor): The normalised images, perhaps padded.
        samples (list[BaseDataElement]): Their annotations, padded alike.
        features (Any): What the head reads.
        guidance (dict[str, list[Tensor]]): Outputs of the named layers.
    """
    inputs: Tensor
    samples: List[BaseDataElement]
    features: Any
    guidance: Dict[str, List[Tensor]]


class Teacher:
    """Runs a frozen mm* model of any kind of task.

    The backbone and the neck see the batch; the head sees one image after the
    other. So the loss of an image is what it would be alone, whatever the
    others are: detectors divide by the positives of the batch, segmentors by
    its labelled pixels.

    Args:
        model (BaseModel): The model; it is put into eval mode and its
            parameters take no gradient.
        layers (str, optional): Pattern for layers of backbone and neck whose
            outputs are kept. Defaults to None, which is none.

    Raises:
        ValueError: If the model does not normalise its images.
    """

    def __init__(self, model: BaseModel, layers: Optional[str] = None) -> None:
        model.eval()
        self.model = model.requires_grad_(False)
        self.preprocessor = model.data_preprocessor
        if not getattr(self.preprocessor, '_enable_normalize', False):
            raise ValueError(
                f'The teacher, a {type(model).__name__}, does not say how its '
                'images are normalised; give its config a data_preprocessor '
                'with `mean` and `std`.')
        names = [] if layers is None else match_names(
            model, layers, 'guidance', nested=True)
        self.layers = {name: model.get_submodule(name) for name in names}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device

    def see(self, images: Tensor, samples: Sequence[BaseDataElement]) -> Pass:
        """Run backbone and neck, with a graph to the images.

        Args:
            images (Tensor): (B, 3, H, W), RGB from 0 to 1.
            samples (Sequence[BaseDataElement]): Their data samples; copies
                are preprocessed.

        Raises:
            ValueError: If a layer whose output is kept did not run.
        """
        inputs, samples = self._preprocess(images, samples)
        with tapping(self.layers) as seen:
            features = self.model.extract_feat(inputs)
        silent = [name for name, calls in seen.items() if not calls]
        if silent:
            raise ValueError(
                f'The layer {silent[0]!r} is named for guidance but does not '
                'run in the backbone or neck of the teacher; name layers '
                'that do.')
        guidance = {
            name: [x for call in calls for x in tensors_of(call.output)]
            for name, calls in seen.items()
        }
        return Pass(inputs, samples, features, guidance)

    def _preprocess(self, images: Tensor,
                    samples: Sequence[BaseDataElement]) -> tuple:
        samples = deepcopy(list(samples))
        samplelist_boxtype2tensor(samples)
        loaded = list(images.flip(1) * 255)  # as pipelines load them: BGR
        held, self.preprocessor.batch_augments = getattr(
            self.preprocessor, 'batch_augments', None), None
        try:
            data = self.preprocessor(
                dict(inputs=loaded, data_samples=samples), training=True)
        finally:
            self.preprocessor.batch_augments = held
        for sample in data['data_samples'] or ():
            if 'gt_score' in sample:  # whole numbers where nothing is mixed
                sample.set_gt_score(sample.gt_score.float())
        return data['inputs'], data['data_samples']

    def losses(self, seen: Pass) -> Tensor:
        """The model's own loss for the annotation of each image, (B, )."""
        losses = []
        for inputs, sample, features in _each(seen):
            with self._reading(features):
                loss = self.model.loss(inputs, [sample])
            losses.append(self.model.parse_losses(loss)[0])
        return torch.stack(losses)

    def outputs(self, seen: Pass) -> List[Tensor]:
        """What the head makes of the images, before any post-processing.

        Of detectors in two stages it is what the first one makes.
        """
        if getattr(self.model, 'rpn_head', None) is not None:
            return tensors_of(self.model.rpn_head(seen.features))
        with self._reading(seen.features):
            return tensors_of(
                self.model(seen.inputs, seen.samples, mode='tensor'))

    def unlike(self, outputs: List[Tensor], targets: List[Tensor]) -> Tensor:
        """How far outputs are from those of the guides, (B, ).

        KL divergence of classes and of label maps; otherwise the squared
        error, relative to the square of the guide's, mean over the outputs.
        """
        if self._gives_classes(outputs):
            return divergence(outputs[0], targets[0])
        errors = [(x - y).square().flatten(1).mean(1) /
                  y.square().flatten(1).mean(1).clamp(min=1e-8)
                  for x, y in zip(outputs, targets)]
        return sum(errors) / len(errors)

    def _gives_classes(self, outputs: List[Tensor]) -> bool:
        if len(outputs) != 1 or outputs[0].shape[1] == 1:
            return False
        head = type(getattr(self.model, 'head', None)).__name__
        return 'MultiLabel' not in head and (hasattr(
            self.model, 'head') or hasattr(self.model, 'decode_head'))

    @contextmanager
    def _reading(self, features: Any) -> Iterator[None]:
        """Within this context the head reads these features."""
        self.model.extract_feat = lambda *_, **__: features
        try:
            yield
        finally:
            del self.model.extract_feat


def _each(seen: Pass) -> Iterator[tuple]:
    for index, sample in enumerate(seen.samples):
        place = slice(index, index + 1)
        yield seen.inputs[place].detach(), sample, apply_to(
            seen.features,
            lambda x: isinstance(x, Tensor),
            lambda x, at=place: x[at])


def tensors_of(nested: Any) -> List[Tensor]:
    """The tensors of floating point of nested containers, in order."""
    if isinstance(nested, Tensor):
        return [nested] if nested.is_floating_point() else []
    if isinstance(nested, dict):
        nested = tuple(nested.values())
    if not isinstance(nested, (list, tuple)):
        return []
    return [x for part in nested for x in tensors_of(part)]


def kind_of(sample: BaseDataElement) -> str:
    """The kind of task that a data sample is of.

    Raises:
        ValueError: If it is of none.
    """
    library = type(sample).__module__.partition('.')[0]
    for name, kind in KINDS.items():
        if kind.scope == library:
            return name
    raise ValueError(f'A {type(sample).__name__} is no data sample of '
                     f'{", ".join(kind.scope for kind in KINDS.values())}; '
                     'let the pipeline end in one of their stages that pack '
                     'inputs.')


def is_labelled(sample: BaseDataElement) -> bool:
    """Whether a data sample holds an annotation of its kind.

    That of a detector without boxes has an empty list of them; without any
    annotation it has none.
    """
    field = KINDS[kind_of(sample)].gt
    return field in sample and (field != KINDS['det'].gt
                                or 'bboxes' in sample.get(field))
