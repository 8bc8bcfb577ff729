# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A trained model as one ONNX file that computes the same."""

import inspect
import os
from dataclasses import dataclass
from math import lcm
from os import PathLike
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from vim_mm.models.export import OnnxModel
from vim_mm.models.export.boxes import box_graph_of
from vim_mm.models.export.graphs import graph_of
from vim_mm.models.export.tracing import compare, takes, trace, with_metadata
from vim_mm.models.multitask.single_task import (LOAD_TASK, config_tasks,
                                                 task_config)
from vim_mm.models.pixels import Normalizer
from vim_mm.models.tasks import holders, select_task
from vim_mm.utils.checksum import BLANK, NAME, signed_onnx
from vim_mm.utils.config import read_config, type_name
from vim_mm.utils.files import write_atomic
from vim_mm.version import __version__
from .served_data import class_names, test_dataset
from .serving import load_model


@dataclass(frozen=True)
class Exported:
    """What :func:`export_onnx` wrote.

    Attributes:
        file (Path): The file.
        kind (str): 'cls', 'det' or 'seg'.
        outputs (list[str]): Names of its outputs.
        opset (int): Version of ONNX, as read back.
        any_size (bool): Whether it reads images of any size; some models
            read one size alone. Any number of images it always reads.
        megabytes (float): Size of the file.
        differences (dict[str, float]): For shapes of inputs, the largest
            difference from PyTorch, in units of the largest output.
    """
    file: Path
    kind: str
    outputs: List[str]
    opset: int
    any_size: bool
    megabytes: float
    differences: Dict[str, float]


def export_onnx(config: Union[str, Config],
                checkpoint: str,
                file: Union[str, PathLike],
                task: Optional[str] = None,
                size: Optional[Sequence[int]] = None,
                boxes: bool = False) -> Exported:
    """Export a trained model: see :func:`export_model`.

    Args:
        config (str | Config): Config of any model of cls, det or seg.
        checkpoint (str): What its training left.
        file (str | PathLike): The ``.onnx`` file to write.
        task (str, optional): The task of a model or fusion of several.
        size (Sequence[int], optional): See :func:`export_model`.
        boxes (bool): See :func:`export_model`.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the checkpoint does not fit, or the model cannot be
            exported; then there is no file.
    """
    model, cfg, meta = load_for_export(config, checkpoint, task)
    return export_model(model, cfg, file, meta, size, boxes)


def load_for_export(config: Union[str, Config],
                    checkpoint: str,
                    task: Optional[str] = None
                    ) -> Tuple[BaseModel, Config, dict]:
    """A model that runs one task, its config, and what its file notes.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the checkpoint does not fit, or the task is not there.
    """
    cfg = read_config(config)
    several = config_tasks(cfg)
    if several and task is None:
        raise ValueError(f'The model is of the tasks {several}, and a file '
                         'of one; say which `task` is to be exported.')
    if several:
        cfg = task_config(cfg, task)
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmengine')):
        model, meta = load_model(cfg, checkpoint)
    known = [each for part in holders(model) for each in part.tasks]
    if cfg.get(LOAD_TASK) in known or (task and not several):
        select_task(model, cfg.get(LOAD_TASK) or task)
    return model, cfg, meta


@torch.no_grad()
def export_model(model: BaseModel,
                 cfg: Config,
                 file: Union[str, PathLike],
                 meta: Optional[dict] = None,
                 size: Optional[Sequence[int]] = None,
                 boxes: bool = False) -> Exported:
    """Write a model as one ONNX file, after it has computed the same.

    The graph takes normalised images of any number and size; it is compared
    with PyTorch at three batch sizes and two image sizes. Normalisation,
    class names, the test pipeline and, for detectors, the settings of
    :func:`vim_mm.models.export.decode` are in the metadata.

    Args:
        model (BaseModel): In eval mode.
        cfg (Config): Its config, with its test pipeline.
        file (str | PathLike): The file to write; its folder must exist.
        meta (dict, optional): What the checkpoint notes of the data set.
        size (Sequence[int], optional): Usual height and width of inputs;
            what the test pipeline gives when None.
        boxes (bool): Whether a detector's graph ends in boxes instead of
            raw maps. It then takes ``size`` as well, the images' sizes
            without padding, (B, 2). Defaults to False.

    Raises:
        ValueError: If the model cannot be exported, or the graph differs;
            then there is no file.
    """
    file = Path(file)
    _check_target(file)
    model.eval()
    graph = box_graph_of(model) if boxes else graph_of(model)
    dataset = test_dataset(cfg)
    normalizer = Normalizer.of(model.data_preprocessor)
    divisor = size_divisor(model)
    height, width = (
        -(-side // divisor) * divisor
        for side in size or usual_size(dataset.pipeline))
    about = dict(
        producer=f'vim_mm {__version__}',
        kind=graph.kind,
        classes=class_names(dataset, meta or {}, model)[0],
        mean=normalizer.mean,
        std=normalizer.std,
        channels=normalizer.channels,
        divisor=divisor,
        size=[height, width],
        data_preprocessor=_plain(
            cfg.model.get('data_preprocessor') or cfg.data_preprocessor),
        pipeline=[
            _plain(stage) for stage in dataset.pipeline
            if 'Annotation' not in type_name(stage)
        ],
        **{NAME: BLANK},
        **graph.about)
    usual = height, width
    if min(usual) < 1 or not takes(graph, (2, 3, *usual)):
        raise ValueError(f'The model reads no images of {height} x {width} px '
                         '(`size`, height x width); give another size.')
    sizes = [
        each for each in smaller(*usual, divisor)
        if takes(graph, (2, 3, *each))
    ]
    for small in (*sizes, usual):
        any_size = small is not usual
        try:
            content, opset = with_metadata(
                trace(graph, (2, 3, *small), any_size),
                dict(about, any_size=any_size))
            # both differ from what was traced, in number and in size
            differences = compare(graph, content, [(1, 3, *usual),
                                                   (3, 3, *small)])
            break
        except ValueError:
            if not any_size:
                raise
    write_atomic(file, signed_onnx(content))
    return Exported(file, graph.kind, graph.names, opset, any_size,
                    len(content) / 2**20, differences)


def _check_target(file: Path) -> None:
    if (file.suffix != '.onnx' or file.is_dir() or not file.parent.is_dir()
            or not os.access(file.parent, os.W_OK)):
        raise ValueError(
            f"'{file}' cannot be written: name a file that ends in .onnx, in "
            'a folder that is there and that you may write.')


@torch.no_grad()
def latency(model: BaseModel,
            file: Union[str, PathLike],
            num_threads: int = 0,
            repeats: int = 20) -> Dict[str, float]:
    """Milliseconds for one image of the usual size, from pixels on the CPU.

    Args:
        model (BaseModel): In eval mode, on the CPU.
        file (str | PathLike): A file that :func:`export_model` wrote.
        num_threads (int): Threads of onnxruntime, its choice when 0;
            PyTorch's are set outside.
        repeats (int): Passes, of which the median counts.

    Returns:
        dict[str, float]: ``torch`` and ``onnx``.
    """
    onnx = OnnxModel(file, num_threads)
    height, width = onnx.about['size']
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    sample = onnx.new_sample()
    sample.set_metainfo(
        dict(
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1., 1.)))
    times = {}
    for name, each in dict(torch=model, onnx=onnx).items():
        passes = []
        for _ in range(repeats + 1):
            data = dict(inputs=[image], data_samples=[sample.clone()])
            start = perf_counter()
            each.test_step(data)
            passes.append(perf_counter() - start)
        times[name] = 1000 * median(passes[1:])
    return times


def size_divisor(model: BaseModel) -> int:
    """What heights and widths of a model's inputs are multiples of."""
    own = model.data_preprocessor
    padded = (getattr(own, 'test_cfg', None) or {}).get('size_divisor')
    padded = padded or getattr(own, 'pad_size_divisor', None) or 1
    return lcm(padded, getattr(model.backbone, 'size_divisor', 1))


def usual_size(pipeline: Sequence[dict]) -> Tuple[int, int]:
    """Height and width of the images that a test pipeline gives.

    Of those that keep their ratio, the largest; 224 if it does not say.
    """
    height, width = 224, 224
    for stage in pipeline:
        given = stage.get('crop_size', stage.get('scale'))
        if isinstance(given, int):
            height = width = given
        elif given is not None:
            first, second = given
            # mmcv and its libraries: a scale is width and height, a crop
            # height and width
            height, width = (first, second) if 'crop_size' in stage else (
                second, first)
    return height, width


def smaller(height: int, width: int,
            divisor: int) -> Iterator[Tuple[int, int]]:
    """Other sizes, of another shape, to trace and compare with.

    Odd ones come first: what is padded or cut off because of them is then
    in the graph for all. Some networks read only what they can halve.
    """
    for shares, multiple in (((0.6, 0.9), 1), ((0.8, 0.7), 1), ((0.6, 0.9),
                                                                32)):
        odd = multiple == divisor == 1
        multiple = max(multiple, divisor)
        sides = [
            max(multiple, int(side * share) // multiple * multiple)
            for side, share in zip((height, width), shares)
        ]
        yield tuple(side | 1 if odd else side for side in sides)


def _plain(cfg: dict) -> Any:
    """A config as JSON takes it, types by name."""
    if isinstance(cfg, dict):
        return {key: _plain(value) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return list(map(_plain, cfg))
    if inspect.isclass(cfg):
        return f'{cfg.__module__.partition(".")[0]}.{cfg.__name__}'
    return cfg
