# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Predictions of any kind of mm* model as plain values, words and images."""

import inspect
import json
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import cv2
import mmcv
import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement

from vim_mm.utils.config import class_of, type_name
from vim_mm.utils.files import write_atomic
from vim_mm.utils.kinds import KINDS, find_kind

#: Images below this side are enlarged before drawing: text needs room.
MIN_SIDE = 320


def kind_of(sample: BaseDataElement) -> str:
    """Whether a data sample holds the prediction of a 'cls', 'det' or 'seg'.

    Raises:
        ValueError: If it holds another kind.
    """
    kind = find_kind(sample, 'pred')
    if kind is None:
        raise ValueError(
            f'Predictions of the fields {sorted(sample.keys())} have no plain '
            'form here; set return_datasamples=True, and no_save_vis=True and '
            'no_save_pred=True beside out_dir.')
    return kind


def describe(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    """A prediction as JSON values, but for a map of pixels.

    Args:
        sample (BaseDataElement): A data sample on the CPU.
        classes (Sequence[str]): Class names.

    Returns:
        dict: The keys of the mm* inferencers. 'cls': ``pred_label``,
        ``pred_class``, ``pred_score``, ``pred_scores``. 'det': ``bboxes`` in
        pixels (x1, y1, x2, y2), ``labels``, ``scores``, ``classes``, and
        ``masks`` as RLE. 'seg': ``sem_seg``, (H, W) labels, and ``classes``,
        the share of pixels of each that was found.
    """
    return globals()[f'_{kind_of(sample)}'](sample, classes)


def _cls(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    labels = sample.pred_label.tolist()
    names = [classes[label] for label in labels]
    found = dict(pred_label=labels, pred_class=names)
    if len(labels) == 1:
        found = dict(pred_label=labels[0], pred_class=names[0])
    if 'pred_score' in sample:
        scores = sample.pred_score.tolist()
        picked = [scores[label] for label in labels]
        found['pred_score'] = picked[0] if len(picked) == 1 else picked
        found['pred_scores'] = scores
    return found


def _det(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    instances = sample.pred_instances
    labels = instances.labels.tolist()
    found = dict(
        labels=labels,
        classes=[classes[label] for label in labels],
        scores=instances.scores.tolist(),
        bboxes=instances.bboxes.tolist())
    if 'masks' in instances:
        masks = encode_mask_results(instances.masks.numpy())
        for mask in masks:
            mask['counts'] = mask['counts'].decode()
        found['masks'] = masks
    return found


def _seg(sample: BaseDataElement, classes: Sequence[str]) -> dict:
    labels = sample.pred_sem_seg.data[0].numpy()
    kind = np.uint8 if len(classes) <= 256 else np.uint16
    found, counts = np.unique(labels, return_counts=True)
    share = (counts / labels.size).round(4).tolist()
    return dict(
        sem_seg=labels.astype(kind),
        classes=dict(zip([classes[label] for label in found], share)))


def words(prediction: dict, score_thr: float = 0.3) -> str:
    """A prediction from :func:`describe` in a few words, for a terminal."""
    if 'pred_label' in prediction:
        names, scores = prediction['pred_class'], prediction.get('pred_score')
        if isinstance(names, list):
            return ', '.join(names) or 'nothing'
        return names if scores is None else f'{names} ({scores:.2f})'
    classes = prediction['classes']
    if 'sem_seg' in prediction:
        order = sorted(classes, key=classes.get, reverse=True)
        return ', '.join(f'{name} {classes[name]:.0%}' for name in order[:5])
    seen = [
        name for name, score in zip(classes, prediction['scores'])
        if score > score_thr
    ]
    return ', '.join(f'{name} x{seen.count(name)}'
                     for name in dict.fromkeys(seen)) or 'nothing'


class Painter:
    """Draws data samples with the visualizer of their library.

    Args:
        cfg (dict, optional): The config's own visualizer. A plain mmengine
            ``Visualizer`` cannot draw predictions and is passed over.
        classes (Sequence[str]): Class names.
        palette (Sequence[tuple[int]]): Their colours, RGB.
    """

    def __init__(self, cfg: Optional[dict], classes: Sequence[str],
                 palette: Sequence[tuple]) -> None:
        self.cfg = cfg or dict(type='Visualizer')
        self.meta = dict(classes=list(classes), palette=list(palette))
        self._made: Dict[str, object] = {}

    def _visualizer(self, kind: str) -> object:
        if kind not in self._made:
            cfg = dict(self.cfg)
            # results go to their own folder, not to a run's backends
            for key in ('name', 'vis_backends', 'save_dir'):
                cfg.pop(key, None)
            if type_name(cfg) == 'Visualizer':
                cfg = dict(KINDS[kind].visualizer)
            # found, not built, by the registry: it would keep one for all
            made_by = class_of(cfg, VISUALIZERS)
            made = made_by(
                **{k: v
                   for k, v in cfg.items() if k not in ('type', '_scope_')})
            made.dataset_meta = self.meta
            self._made[kind] = made
        return self._made[kind]

    def __call__(self,
                 picture: np.ndarray,
                 sample: BaseDataElement,
                 name: str = '',
                 show: bool = False,
                 wait_time: float = 0,
                 pred_score_thr: float = 0.3,
                 side: str = 'pred',
                 labels: bool = True) -> np.ndarray:
        """Draw a prediction, or the annotation.

        Args:
            picture (np.ndarray): (H, W, 3) uint8, BGR.
            sample (BaseDataElement): Its prediction, on the CPU.
            name (str): Title of the window.
            show (bool): Whether to open a window. Defaults to False.
            wait_time (float): Seconds it stays; 0 waits for a key.
            pred_score_thr (float): Boxes from this score on are drawn.
            side (str): 'pred', or 'gt' for the annotation; this lies where a
                prediction would. Defaults to 'pred'.
            labels (bool): Whether maps are labelled. Defaults to True.

        Returns:
            np.ndarray: The drawing, RGB; small images come out enlarged.
        """
        kind = kind_of(sample)
        picture, times = enlarge(picture[..., ::-1])
        sample = enlarged(sample, kind, times, side)
        visualizer = self._visualizer(kind)
        draw = getattr(visualizer, 'visualize_cls', None)
        given = dict(name=name, image=picture, data_sample=sample)
        given.update(draw_gt=False, show=show, wait_time=wait_time)
        if side == 'gt':
            given.update(draw_gt=True, draw_pred=False)
        if kind != 'cls' or draw is None:
            draw = visualizer.add_datasample
        # by the release of mmseg
        options = dict.fromkeys(('with_labels', 'withLabels'), labels)
        options.update(pred_score_thr=pred_score_thr)
        known = inspect.signature(draw).parameters
        given.update((k, v) for k, v in options.items() if k in known)
        draw(**given)
        return visualizer.get_image()


def enlarge(picture: np.ndarray) -> Tuple[np.ndarray, int]:
    """An image of at least :data:`MIN_SIDE`, and how many times it grew."""
    times = -(-MIN_SIDE // max(picture.shape[:2]))
    picture = np.ascontiguousarray(picture)
    return mmcv.imrescale(
        picture, float(times), interpolation='bicubic'), times


def enlarged(sample: BaseDataElement,
             kind: str,
             times: int,
             side: str = 'pred') -> BaseDataElement:
    """A copy of a prediction on an image enlarged a whole number of times.

    With the side 'gt' it is the annotation that grows.
    """
    sample, field = sample.clone(), getattr(KINDS[kind], side)
    if kind == 'seg':
        own = sample.get(field)
        grown = type(own)(data=_repeat(own.data.numpy(), times))
        setattr(sample, field, grown)
    elif kind == 'det':
        # a clone holds the very same instances
        instances = sample.get(field).clone()
        instances.bboxes = instances.bboxes * times
        if 'masks' in instances:
            instances.masks = _repeat(instances.masks.numpy(), times)
        setattr(sample, field, instances)
    return sample


def _repeat(maps: np.ndarray, times: int) -> np.ndarray:
    return maps.repeat(times, axis=-1).repeat(times, axis=-2)


# -------------------------------------------------------------------- files


class ResultFolder:
    """``vis/TASK/NAME.png`` and ``preds/TASK/NAME.json`` under one folder.

    Every file is written whole or not at all.

    Args:
        root (str): The folder; made when something is written.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def save_drawing(self, task: str, name: str, drawing: np.ndarray) -> str:
        """Write a drawing (RGB); returns the file."""
        return self._picture(self._path('vis', task, name, 'png'),
                             np.ascontiguousarray(drawing[..., ::-1]))

    def save_prediction(self, task: str, name: str, prediction: dict) -> None:
        """Write a prediction from :func:`describe`.

        A map of pixels goes into a PNG file beside it, whose values are the
        labels; the prediction then holds the file's path in its place.
        """
        if 'sem_seg' in prediction:
            path = self._path('preds', task, name, 'png')
            prediction['sem_seg'] = self._picture(path, prediction['sem_seg'])
        write_atomic(
            self._path('preds', task, name, 'json'),
            json.dumps(prediction, indent=1) + '\n')

    def _path(self, room: str, task: str, name: str, suffix: str) -> Path:
        folder = self.root / room / task
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f'{name}.{suffix}'

    @staticmethod
    def _picture(path: Path, pixels: np.ndarray) -> str:
        write_atomic(path, cv2.imencode('.png', pixels)[1].tobytes())
        return str(path)
