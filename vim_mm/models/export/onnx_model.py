# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.utils import get_object_from_string
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.checksum import is_intact
from vim_mm.utils.kinds import KINDS
from .about import OnnxFileError, read_about
from .decoders import decode

#: Data samples of the kinds of tasks; only the library needed is imported.
SAMPLES = dict(
    cls='mmpretrain.structures.DataSample',
    det='mmdet.structures.DetDataSample',
    seg='mmseg.structures.SegDataSample')


@MODELS.register_module()
class OnnxModel(BaseModel):
    """A file of :func:`vim_mm.apis.export_onnx` as a model that predicts.

    Its predictions are data samples like those of the model that was
    exported, so a config tests it with the metrics of its task::

        model = dict(type='vim_mm.OnnxModel', file='student.onnx')

    Args:
        file (str | PathLike): The file.
        num_threads (int): Threads of a pass. Defaults to 0, onnxruntime's
            choice.
        **kwargs: What configs tell other models; it is not used.

    Attributes:
        about (dict): The metadata of the file: ``kind``, ``classes``,
            ``mean``, ``std``, ``channels``, ``divisor``, ``size`` and more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of ours, or damaged.

    Examples:
        >>> model = OnnxModel('student.onnx')
        >>> [sample] = model.infer(['photo.jpg'])
    """

    def __init__(self,
                 file: Union[str, PathLike],
                 num_threads: int = 0,
                 **kwargs: Any) -> None:
        self.session = open_session(file, num_threads)
        about = read_about(self.session, fspath(file))
        with DefaultScope.overwrite_default_scope(
                KINDS[about['kind']].scope):
            try:
                super().__init__(data_preprocessor=about['data_preprocessor'])
            except Exception as error:  # of settings of a wrong type
                raise OnnxFileError(
                    f"The data_preprocessor of '{fspath(file)}' cannot be "
                    f'built: {error}') from error
        self.about = about
        self.kind: str = about['kind']
        self.outputs = [each.name for each in self.session.get_outputs()]

    def new_sample(self) -> BaseDataElement:
        """An empty data sample of its kind of task."""
        return get_object_from_string(SAMPLES[self.kind])()

    def run(self, inputs: Tensor, sizes: Sequence[tuple]) -> Dict[str, Any]:
        """Outputs of the graph by name.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W).
            sizes (Sequence[tuple]): Their sizes without padding; read by
                graphs that end in boxes.
        """
        given = dict(image=inputs.cpu().numpy())
        if len(self.session.get_inputs()) > 1:
            given['size'] = np.array(sizes, dtype=np.float32)
        return dict(zip(self.outputs, self.session.run(None, given)))

    def forward(self,
                inputs: Tensor,
                data_samples: Optional[list] = None,
                mode: str = 'tensor') -> Any:
        """As of any mm* model, but that it has no losses.

        Raises:
            ValueError: If the mode is 'loss'.
        """
        if mode == 'loss':
            raise ValueError('An ONNX file does not learn; train the model '
                             'that it was made of.')
        if data_samples is None:
            data_samples = [self.new_sample() for _ in inputs]
        full = tuple(inputs.shape[2:])
        metas = [sample.metainfo for sample in data_samples]
        sizes = [meta.get('img_shape', full)[:2] for meta in metas]
        outputs = self.run(inputs, sizes)
        if mode == 'tensor':
            return outputs
        predict = getattr(self, f'_predict_{self.kind}')
        return predict(outputs, data_samples, sizes)

    def _predict_cls(self, outputs: Dict[str, Any], samples: list,
                     sizes: list) -> List[BaseDataElement]:
        scores = torch.from_numpy(outputs['scores'])
        for sample, score in zip(samples, scores):
            label = score.argmax(keepdim=True)
            if self.about['activation'] == 'sigmoid':
                label = score.topk(
                    self.about['topk']
                ).indices if self.about['thr'] is None else torch.where(
                    score >= self.about['thr'])[0]
            sample.set_pred_score(score).set_pred_label(label)
        return samples

    def _predict_seg(self, outputs: Dict[str, Any], samples: list,
                     sizes: list) -> List[BaseDataElement]:
        for sample, logits, size in zip(samples, outputs['logits'], sizes):
            # padding lies below and to the right
            logits = torch.from_numpy(logits)[None, :, :size[0], :size[1]]
            logits = F.interpolate(
                logits,
                size=tuple(sample.metainfo.get('ori_shape', size)[:2]),
                mode='bilinear',
                align_corners=self.about['align_corners'])[0]
            if len(logits) > 1:
                labels = logits.argmax(0, keepdim=True)
            else:
                labels = (logits.sigmoid() > self.about['threshold']).long()
            sample.pred_sem_seg = PixelData(data=labels)
        return samples

    def _predict_det(self, outputs: Dict[str, Any], samples: list,
                     sizes: list) -> List[BaseDataElement]:
        scales = [
            sample.metainfo.get('scale_factor', (1., 1.))[:2]
            for sample in samples
        ]
        if 'bboxes' in outputs:  # decoded by the graph
            found = [
                dict(
                    bboxes=boxes[real] / np.float32([*scale, *scale]),
                    scores=scores[real],
                    labels=labels[real])
                for boxes, scores, labels, scale in zip(
                    outputs['bboxes'], outputs['scores'], outputs['labels'],
                    scales) for real in [labels >= 0]
            ]
        else:
            try:
                found = decode(outputs, self.about['decoder'], sizes, scales)
            except (LookupError, TypeError, ValueError) as error:
                raise OnnxFileError('The decoder in the metadata does not fit '
                                    f'the outputs: {error!r}.') from error
        for sample, each in zip(samples, found):
            sample.pred_instances = InstanceData(
                **{name: torch.from_numpy(v) for name, v in each.items()})
        return samples

    def infer(self,
              images: Sequence[Union[str, PathLike, np.ndarray]],
              batch_size: int = 1) -> List[BaseDataElement]:
        """Predictions of images, read and resized as in the model's tests.

        Args:
            images (Sequence): Paths, or arrays (H, W, 3), uint8 and BGR.
            batch_size (int): Images of one size a pass. Defaults to 1.
        """
        samples: List[BaseDataElement] = []
        with DefaultScope.overwrite_default_scope(KINDS[self.kind].scope):
            try:
                pipeline = Compose(list(_with_tuples(self.about['pipeline'])))
            except Exception as error:  # of settings of a wrong type
                raise OnnxFileError('The pipeline in the metadata cannot be '
                                    f'built: {error}') from error
            for start in range(0, len(images), batch_size):
                batch = [
                    pipeline(_as_input(image, index))
                    for index, image in enumerate(
                        images[start:start + batch_size], start)
                ]
                samples += self.test_step(pseudo_collate(batch))
        return samples


def _with_tuples(value: Any) -> Any:
    """A config out of JSON: mmcv takes sizes as tuples alone."""
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(
        value, list) else value


def _as_input(image: Union[str, PathLike, np.ndarray], index: int) -> dict:
    known = dict(img_id=index, sample_idx=index)
    if isinstance(image, np.ndarray):
        return dict(
            known,
            img=image,
            img_path=None,
            img_shape=image.shape[:2],
            ori_shape=image.shape[:2])
    return dict(known, img_path=fspath(image))


def open_session(file: Union[str, PathLike, bytes], num_threads: int = 0):
    """An onnxruntime session on the CPU.

    Args:
        file (str | PathLike | bytes): The file, or what is in it.
        num_threads (int): Threads of a pass; onnxruntime's choice when 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or onnxruntime is missing or cannot run
            it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError('onnxruntime is not installed; run `pip install '
                         'onnx onnxruntime`.') from error
    if not isinstance(file, bytes):
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no ONNX file '{fspath(file)}'.")
        file = fspath(file)
        if is_intact(file) is False:
            raise OnnxFileError(
                f"'{file}' is damaged: its bytes are not those that its "
                'checksum is of; take another copy, or export it again.')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(
            file, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # of classes that it does not export
        what = 'The graph' if isinstance(file, bytes) else f"'{file}'"
        raise ValueError(f'{what} cannot be run by onnxruntime: '
                         f'{str(error).splitlines()[0]}') from error
