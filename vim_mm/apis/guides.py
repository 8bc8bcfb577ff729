# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a config asks to generate, and the images that guide it."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from vim_mm.models.pixels import check_form, to_images
from vim_mm.utils.arguments import (check_arguments, check_is_config,
                                    check_width)
from vim_mm.utils.seeds import SAMPLE, seed_all


@dataclass(frozen=True)
class Plan:
    """The config's ``generate``.

    Attributes:
        generator (dict): Config of a :class:`GuidedGenerator`.
        dataset (dict, optional): Of the guides, as a pipeline packs them;
            that of ``train_dataloader`` when None.
        copies (int): Images of each guide. Defaults to 1.
        batch_size (int): Images made together. Defaults to 16.
        seed (int): Of all that is random. Defaults to 0.
        limit (int, optional): Guides at most. Defaults to None, all.
        suffix (str): Of the image files. Defaults to '.png'.
    """
    generator: dict
    dataset: Optional[dict] = None
    copies: int = 1
    batch_size: int = 16
    seed: int = 0
    limit: Optional[int] = None
    suffix: str = '.png'


def read_plan(cfg: Config) -> Plan:
    """The ``generate`` of a config.

    Raises:
        ValueError: If there is none, or a setting has no meaning.
    """
    given = cfg.get('generate')
    if not isinstance(given, dict) or 'generator' not in given:
        raise ValueError(
            'The config has no `generate` with a `generator`; configs/ota '
            'has some.')
    given = given.to_dict()
    check_arguments(Plan, given)
    given.setdefault('dataset', (cfg.get('train_dataloader')
                                 or {}).get('dataset'))
    plan = Plan(**given)
    if not isinstance(plan.dataset, dict):
        raise ValueError('The config names no data set of guides; set '
                         '`generate.dataset`, or `train_dataloader.dataset`.')
    for what in ('copies', 'batch_size'):
        check_width(getattr(plan, what), f'generate.{what}')
    if plan.limit is not None:
        check_width(plan.limit, 'generate.limit')
    if not isinstance(plan.seed, int) or not 0 <= plan.seed < 2**32:
        raise ValueError(f'`generate.seed` is {plan.seed!r}; give a whole '
                         'number, 0 or more.')
    canvas = plan.generator.get('canvas')
    if canvas is not None:
        check_is_config(canvas, 'generate.generator.canvas')
    return plan


class Guides:
    """Downstream images, each with its data sample, drawn by a seed.

    A copy of a guide is another draw of the pipeline.

    Args:
        dataset (Dataset): The data set.
        plan (Plan): Copies, seed and limit.

    Raises:
        ValueError: If it is empty.
    """

    def __init__(self, dataset: Any, plan: Plan) -> None:
        self.dataset, self.seed = dataset, plan.seed
        num = min(len(dataset), plan.limit or len(dataset))
        if not num:
            raise ValueError('The data set of the guides is empty.')
        self.places = [(index, copy) for index in range(num)
                       for copy in range(plan.copies)]

    def __getitem__(self, place: Tuple[int,
                                       int]) -> Tuple[Tensor, BaseDataElement]:
        """An image (3, H, W), RGB from 0 to 1, and its data sample."""
        seed_all(self.seed, SAMPLE, *place)
        data = self.dataset[place[0]]
        return to_images(self.checked(data)['inputs']), data['data_samples']

    def check(self, model: BaseModel) -> None:
        """Refuse guides that are not as the teacher's pipeline gives them.

        Raises:
            ValueError: If they are not packed, or normalised already.
        """
        data = self.checked(self.dataset[0])
        check_form(model, dict(inputs=[data['inputs']]), padded=False)

    @staticmethod
    def checked(data: Any) -> dict:
        """What a pipeline gives of one image, if it is packed."""
        if not isinstance(data, dict) or not {
                'inputs', 'data_samples'} <= data.keys():
            raise ValueError(
                'The pipeline of the guides does not pack them; let it end '
                'with PackInputs (mmpretrain), PackDetInputs (mmdet) or '
                'PackSegInputs (mmseg).')
        return data

    def batches(self, size: int) -> List[List[Tuple[int, int]]]:
        """Places in batches of images of one size, always the same ones."""
        groups: Dict[tuple, List[Tuple[int, int]]] = {}
        for place in self.places:
            groups.setdefault(tuple(self[place][0].shape), []).append(place)
        return [
            group[start:start + size] for group in groups.values()
            for start in range(0, len(group), size)
        ]

    def read(self, places: List[Tuple[int, int]],
             device: str) -> Tuple[Tensor, List[BaseDataElement]]:
        """A batch of guides of one size on a device."""
        pairs = [self[place] for place in places]
        images = torch.stack([image for image, _ in pairs])
        return images.to(device), [sample for _, sample in pairs]

    def check_copies(self, is_random: bool) -> None:
        """Refuse copies that would be the same image again.

        Raises:
            ValueError: If neither pipeline nor generator draws anything.
        """
        first, second = self.places[0], self.places[1:2]
        if not is_random and second and second[0][0] == first[0] \
                and torch.equal(self[first][0], self[second[0]][0]):
            raise ValueError(
                '`generate.copies` asks for several images of each guide, and '
                'they would be the same one; give the generator noise, motion '
                'or tokens, or the pipeline random transforms.')
