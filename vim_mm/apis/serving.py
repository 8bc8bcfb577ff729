# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Tasks that hold one trunk and one zoo in common.

A task's model is built as its config says and then made to hold the very
tensors of a model that is there already, wherever the two are equal. Modules,
hooks and settings such as ``out_indices`` stay its own, so it computes what it
would compute alone; what costs memory, the trunk's and the modules' weights,
is there once.
"""

from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement

from vim_mm.models import build_model
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.backbones.compiling import compile_options
from vim_mm.models.checkpoint_notes import read_notes
from vim_mm.models.fit import check_fit
from vim_mm.models.function_notes import check_modules
from vim_mm.models.multitask.single_task import (LOAD_TASK, config_tasks,
                                                 task_checkpoint, task_config)
from vim_mm.models.tasks import holders, select_task
from vim_mm.utils.checkpoint_form import check_whole, state_of
from vim_mm.utils.config import read_config, type_name
from vim_mm.utils.kinds import KINDS
from vim_mm.utils.pipelines import check_pipelines
from .inputs import Picture
from .served_data import class_names, test_dataset
from .sharing import check_trunk, share
from .trunk_pass import ReadsLevels, TrunkPass, gives_same_levels, is_beside


class ServedTask:
    """A task's model, its images' way into it, and its class names.

    Args:
        name (str): Name of the task.
        config (str | Config): Config of a model with a backbone, or of a
            multi-task model.
        checkpoint (str): What its training left: gates, neck and head.
        gates (str, optional): The task of the model, or of its fusion, that
            is meant. By default ``name`` where the model knows it, else what
            the config selects.
        beside (Sequence[ServedTask]): Tasks that are served already; their
            tensors are taken where they are equal. Defaults to none.
        device (str): Where the model runs. Defaults to 'cpu'.
        compile (bool | dict, optional): See :class:`ViMInferencer`; what the
            config says of its backbone when None. Defaults to None.

    Attributes:
        model (BaseModel): In eval mode, without gradients.
        trunk_pass (TrunkPass, optional): Where modules beside the trunk read
            it; None for modules in the trunk.
        classes (list[str]): Class names.
        palette (list[tuple[int]]): An RGB colour for each.

    Raises:
        FileNotFoundError: If the config, the checkpoint or the trunk's
            weights do not exist.
        ValueError: If the checkpoint does not fit the model, the trunk is
            another one than that of the tasks beside, or ``compile`` cannot
            be done.
    """

    def __init__(self,
                 name: str,
                 config: Union[str, Config],
                 checkpoint: str,
                 gates: Optional[str] = None,
                 beside: Sequence['ServedTask'] = (),
                 device: str = 'cpu',
                 compile: Union[bool, dict, None] = None) -> None:
        self.name = name
        self.cfg = read_config(config)
        if config_tasks(self.cfg):
            self.cfg = task_config(self.cfg, gates or name)
        self.scope = self.cfg.get('default_scope', 'mmengine')
        try:
            check_pipelines(self.cfg)
            with self.in_scope():
                self.model, meta = load_model(self.cfg, checkpoint)
                self._select(gates)
                for other in beside:
                    backbones = self.model.backbone, other.model.backbone
                    if all(isinstance(b, ViMBackbone) for b in backbones):
                        check_trunk(*backbones, other.name)
                    share(self.model, other.model)
                self._read_dataset(meta)
                self._prepare_pass(beside, device, compile)
        except ValueError as error:
            raise ValueError(f"Task '{name}' cannot be served. "
                             f'{error}') from error
        self.model.to(device)

    @contextmanager
    def in_scope(self, scope: Optional[str] = None) -> Iterator[None]:
        """Within this context bare types are those of the task's library."""
        with DefaultScope.overwrite_default_scope(scope or self.scope):
            yield

    def _select(self, gates: Optional[str]) -> None:
        known = [t for part in holders(self.model) for t in part.tasks]
        wanted = self.cfg.get(LOAD_TASK) or gates or self.name
        if wanted in known:
            select_task(self.model, wanted)
        elif gates and gates != self.cfg.get(LOAD_TASK):
            raise ValueError(f"Its model has no gates '{gates}'; it has "
                             f'{known or "no fusion"}.')

    def _prepare_pass(self, beside: Sequence['ServedTask'], device: str,
                      compile: Union[bool, dict, None]) -> None:
        """Compile the backbone, and let its trunk run once for many tasks."""
        backbone, cfg, options = self.model.backbone, self.backbone_cfg, None
        if compile is None:
            compile = cfg.get('compile', False)
        if compile is not False:
            sizes = choose_graph(self.cfg, device)
            options = compile_options(compile, device, **sizes)
        self.options = options
        self.trunk_pass = None
        if not isinstance(backbone, ViMBackbone) or not is_beside(backbone):
            if options is not None:
                backbone.compile(**options)
            return
        for other in beside:
            if other.trunk_pass and options == other.options and (
                    gives_same_levels(backbone, cfg.trunk,
                                      other.model.backbone,
                                      other.backbone_cfg.trunk)):
                self.trunk_pass = other.trunk_pass
                break
        else:
            self.trunk_pass = TrunkPass(backbone, options)
        backbone.forward = ReadsLevels(backbone, self.trunk_pass, options)

    @property
    def backbone_cfg(self) -> ConfigDict:
        """The config of its backbone."""
        return self.cfg.model.backbone

    def _read_dataset(self, meta: dict) -> None:
        dataset = test_dataset(self.cfg)
        stages = [
            stage for stage in dataset.pipeline
            if 'Annotation' not in type_name(stage)
        ]
        loads = [
            index for index, stage in enumerate(stages)
            if type_name(stage).startswith('LoadImage')
        ]
        if not loads:
            raise ValueError('Its test pipeline has no LoadImageFromFile.')
        split = loads[0] + 1
        with self.in_scope(dataset.get('_scope_')):
            self._load = Compose(stages[:split])
            self._transform = Compose(stages[split:])
        self._as_float = stages[loads[0]].get('to_float32', False)
        self.classes, self.palette = class_names(dataset, meta, self.model)

    # ------------------------------------------------------------ inference

    def read(self, picture: Picture, index: int) -> Tuple[dict, np.ndarray]:
        """Put one image through the test pipeline.

        Args:
            picture (str | np.ndarray): Path or URL, or a (H, W, 3) BGR array.
            index (int): Its number, for the data sample.

        Returns:
            tuple[dict, np.ndarray]: What the model's preprocessor takes, and
            the image as loaded, (H, W, 3) uint8 BGR.
        """
        data = dict(img_id=index, sample_idx=index)
        with self.in_scope():
            if isinstance(picture, str):
                data = self._load(dict(data, img_path=picture))
            else:
                kind = np.float32 if self._as_float else picture.dtype
                data.update(
                    img=picture.astype(kind),
                    img_path=None,
                    img_shape=picture.shape[:2],
                    ori_shape=picture.shape[:2])
            loaded = as_bgr(data['img'])
            return self._transform(data), loaded

    @torch.no_grad()
    def predict(self, batch: List[dict]) -> List[BaseDataElement]:
        """Data samples, on the CPU, of images from :meth:`read`."""
        with self.in_scope():
            samples = self.model.test_step(pseudo_collate(batch))
        return [sample.cpu() for sample in samples]


# ------------------------------------------------------------------ building


def load_model(cfg: Config, checkpoint: str) -> Tuple[BaseModel, dict]:
    """Build a model from its config and load all it has learned.

    Unlike in training, a head that stays at random values is an error; see
    :func:`vim_mm.models.fit.check_fit`.

    Returns:
        tuple[BaseModel, dict]: The model, ready to predict, and what the
        checkpoint notes about its data set.

    Raises:
        ValueError: If there is no model or it has no backbone, or the
            checkpoint is of another model.
    """
    plain = {}
    if 'compile' in (cfg.get('model') or {}).get('backbone', {}):
        plain = dict(compile=False)  # left to who serves it
    model = build_model(cfg, **plain)
    if getattr(model, 'backbone', None) is None:
        raise ValueError(f'Its model is a {type(model).__name__}, which has '
                         'no backbone.')
    loaded = CheckpointLoader.load_checkpoint(
        checkpoint, map_location='cpu', logger='silent')
    file = f"The checkpoint '{checkpoint}'"
    check_whole(loaded, file)
    task_checkpoint(loaded, cfg.get(LOAD_TASK), file)
    state = state_of(loaded, file)
    check_fit(model, state, file, every_task=True, whole=True)
    model.load_state_dict(state, strict=False)
    model = revert_sync_batchnorm(model)
    read_notes(model, loaded, file)
    check_modules(model)
    meta = loaded.get('meta', {}).get('dataset_meta') or {}
    return model.requires_grad_(False).eval(), meta


def choose_graph(cfg: Config, device: str) -> dict:
    """Arguments of ``torch.compile`` for the images that a task sees.

    Classifiers and segmentors that slide a window see one size; on a GPU its
    kernels start together, as a CUDA graph. Detectors and other segmentors
    see many, for which one graph is made that takes them all.
    """
    slides = (cfg.model.get('test_cfg') or {}).get('mode') == 'slide'
    if not slides and cfg.get('default_scope') != KINDS['cls'].scope:
        return dict(dynamic=True)
    return dict(mode='reduce-overhead') if 'cuda' in device else {}


def as_bgr(image: np.ndarray) -> np.ndarray:
    """A loaded image of any depth and channels as (H, W, 3) uint8."""
    image = image.clip(0, 255).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return mmcv.gray2bgr(image.reshape(image.shape[:2]))
    return image[..., :3].copy()
