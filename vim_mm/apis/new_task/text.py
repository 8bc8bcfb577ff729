# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The config of a new task as text that its owner goes on with."""

from pathlib import Path
from typing import Any, Optional

from mmdet.visualization.palette import get_palette
from yapf.yapflib.yapf_api import FormatCode

from vim_mm.utils.kinds import KINDS
from .code import (Code, call, detector, one_a_line, preprocessor, segmentor,
                   stages, token_lines)
from .own_data import OwnData, Split
from .own_trunk import OwnTrunk
from .plan import BATCH, Plan

ZOO = 'work_dirs/zoo'
#: As configs of the OpenMMLab libraries look.
STYLE = ('{based_on_style: pep8, '
         'split_before_expression_after_opening_paren: true}')
IMAGENET = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
DATASETS = dict(
    cls='mmpretrain.CustomDataset',
    det='mmdet.CocoDataset',
    seg='mmseg.BaseSegDataset')


class Writer:
    """Writes the config of a task.

    Args:
        name (str): Name of the module and of the task.
        config (Path): The config, in its folder.
        data (OwnData): The data.
        trunk (OwnTrunk): The trunk.
        size (int): Longest side of the images, of classifiers both sides.
        shots (int, optional): Images of each class to learn from.
        indices (int, optional): Images to learn from, the first ones.
        licence (str): Licence of the module.
    """

    def __init__(self, name: str, config: Path, data: OwnData,
                 trunk: OwnTrunk, size: int, shots: Optional[int],
                 indices: Optional[int], licence: str) -> None:
        self.name, self.folder = name, config.resolve().parent
        #: folder of the lists beside the config
        self.lists = self.folder / f'{config.stem}_lists'
        self.data, self.trunk, self.size = data, trunk, size
        self.shots, self.indices, self.licence = shots, indices, licence

    def write(self, header: str, plan: Plan) -> str:
        """The text of the config.

        Args:
            header (str): The docstring.
            plan (Plan): How long it runs.
        """
        body = '\n\n'.join([
            self._bases(),
            self._names(),
            self._model(),
            self._pipelines(),
            self._loaders(plan),
            self._schedule(plan),
        ])
        body, _ = FormatCode(body, style_config=STYLE)
        return f'"""{header}"""\n{body}'

    # ------------------------------------------------------------- its parts

    def _bases(self) -> str:
        kind, base = self.data.kind, self.trunk.base
        bases = [
            f'vim_mm::_base_/models/own_{kind}.py',
            'vim_mm::_base_/datasets/own_data.py',
            'vim_mm::_base_/schedules/own_task.py'
        ]
        if base is not None:
            own = '::' not in base and Path(base).is_relative_to(self.folder)
            bases.insert(0, Path(base).relative_to(self.folder).as_posix()
                         if own else base)  # yapf: disable
        return (f'_base_ = {one_a_line(bases)}\n'
                f'default_scope = {KINDS[kind].scope!r}')

    def _names(self) -> str:
        classes = self.data.classes
        palette = self.data.palette or [
            list(map(int, colour))
            for colour in get_palette('random', len(classes))
        ]
        return (f'classes = {tuple(classes)!r}\n'
                f'palette = {palette!r}\n'
                'metainfo = dict(classes=classes, palette=palette)\n'
                f"size = {self.size}  # px, a multiple of the trunk's "
                f'{max(self.trunk.strides)}')

    def _model(self) -> str:
        trunk, kind = self.trunk, self.data.kind
        # images of a trunk of one size are padded to that
        divisor = self.size if trunk.size else max(trunk.strides)
        norm = Code('**_base_.trunk_normalization')
        if not trunk.normalized or trunk.base is None:
            norm = Code(', '.join(f'{k}={v}' for k, v in IMAGENET.items()))
        parts = dict(
            cls=lambda: dict(head=call(num_classes=Code('len(classes)'))),
            det=lambda: detector(trunk),
            seg=lambda: segmentor(trunk))[kind]()
        slots = dict(slots=trunk.slots) if trunk.slots else {}
        backbone = call(
            trunk=Code('trunk'),
            **slots,
            new_module=self.name,
            probe_size=Code('size'))
        given = '_base_.trunk' if trunk.base else repr(trunk.cfg.to_dict())
        return '\n'.join([
            f'trunk = {given}',
            *(token_lines(trunk) if kind == 'cls' else ()),
            f'data_preprocessor = {preprocessor(kind, norm, divisor)}',
            f'model = {call(backbone=backbone, **parts)}',
        ])

    def _pipelines(self) -> str:
        train, test = stages(self.data.kind)
        return f'train_pipeline = {train}\ntest_pipeline = {test}'

    def _loaders(self, plan: Plan) -> str:
        few = dict(indices=self.indices) if self.indices else {}
        train = self._dataset(self.data.train, 'train_pipeline', **few)
        if self.shots:
            train = call(
                type='vim_mm.FewShot',
                dataset=train,
                per_class=self.shots,
                seed=0)
        batch = {} if plan.batch_size == BATCH else dict(
            batch_size=plan.batch_size)
        val = self._dataset(self.data.val, 'test_pipeline', test_mode=True)
        evaluator = dict(
            cls=call(type='mmpretrain.Accuracy', topk=(1, )),
            det=call(
                type='mmdet.CocoMetric',
                ann_file=Code("val_dataloader['dataset']['ann_file']"),
                metric='bbox'),
            seg=call(type='mmseg.IoUMetric', iou_metrics=['mIoU']))
        return '\n'.join([
            f'train_dataloader = {call(**batch, dataset=train)}',
            f'val_dataloader = {call(dataset=val)}',
            'test_dataloader = val_dataloader',
            f'val_evaluator = {evaluator[self.data.kind]}',
            'test_evaluator = val_evaluator',
        ])

    def _dataset(self, split: Split, pipeline: str, **more: Any) -> Code:
        kind, places = self.data.kind, {}
        for key, value in split.dataset.items():
            places[key] = self._placed(value)
        if kind == 'det' and 'test_mode' not in more:
            # images of background are worth learning from, too
            more['filter_cfg'] = call(filter_empty_gt=False)
        return call(
            type=DATASETS[kind],
            metainfo=Code('metainfo'),
            **places,
            **more,
            pipeline=Code(pipeline))

    def _placed(self, value: Any) -> Any:
        """A setting with its paths as the config names them."""
        if isinstance(value, dict):
            return call(**{key: self._placed(v) for key, v in value.items()})
        return self._place(value) if isinstance(value, Path) else value

    def _place(self, path: Path) -> str:
        """A path, from the config's own folder if it lies in there."""
        if path.as_posix() in self.data.files:
            path = self.lists / path
        path = path.resolve()
        if path.is_relative_to(self.folder):
            own = path.relative_to(self.folder).as_posix()
            return f'{{{{fileDirname}}}}/{own}'
        return path.as_posix()

    def _schedule(self, plan: Plan) -> str:
        warm = call(
            type='vim_mm.WarmHeadHook',
            epochs=10,
            max_batches=plan.warm_batches,
            evaluate=True)
        zoo = call(
            type='vim_mm.ModuleToZooHook',
            zoo=ZOO,
            overwrite=True,
            dataset=f'{self.name}, {plan.num_train} images',
            task=self.data.kind,
            licence=self.licence)
        interval = plan.val_interval
        return '\n'.join([
            f'max_iters = {plan.max_iters}',
            f'train_cfg = dict(max_iters=max_iters, val_interval={interval})',
            'param_scheduler = dict(total_steps=max_iters)',
            f'default_hooks = dict(checkpoint=dict(interval={interval}))',
            f'custom_hooks = {one_a_line([warm, zoo])}',
        ])
