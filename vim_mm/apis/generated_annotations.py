# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What generated images are annotated with: what their guides are."""

from typing import Callable, Dict, Iterable, List, Optional, Sequence

import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement


def _cls_annotation(sample: BaseDataElement, _: tuple) -> int:
    labels = sample.gt_label.tolist()
    if len(labels) != 1:
        raise ValueError(
            f"The guide '{sample.get('img_path')}' has {len(labels)} classes, "
            'and folders hold images of one each; take guides without labels '
            '(no gt_label), which the teacher is imitated on.')
    return labels[0]


def _seg_annotation(sample: BaseDataElement, shape: tuple) -> np.ndarray:
    labels = sample.gt_sem_seg.data[0].cpu().numpy()
    _check_shape(sample, labels.shape, shape)
    if labels.max(initial=0) > 255:
        raise ValueError('A label map has the label '
                         f'{labels.max()}, and its file holds up to 255.')
    return labels.astype(np.uint8)


def _det_annotation(sample: BaseDataElement, shape: tuple) -> List[dict]:
    found: List[dict] = []
    for name, crowd in (('gt_instances', 0), ('ignored_instances', 1)):
        instances = sample.get(name)
        if instances is None or not len(instances.get('bboxes', ())):
            continue
        boxes = instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes).tolist()
        masks: List[Optional[dict]] = [None] * len(boxes)
        if 'masks' in instances:
            arrays = instances.masks.to_ndarray()
            _check_shape(sample, arrays.shape[1:], shape)
            masks = encode_mask_results(list(arrays))
        for box, label, mask in zip(boxes, instances.labels.tolist(), masks):
            left, top, right, bottom = box
            width, height = right - left, bottom - top
            one = dict(
                bbox=[left, top, width, height],
                area=width * height,
                category_id=label + 1,
                iscrowd=crowd)
            if mask is not None:
                one['segmentation'] = dict(
                    size=list(mask['size']), counts=mask['counts'].decode())
            found.append(one)
    return found


def _check_shape(sample: BaseDataElement, own: tuple, image: tuple) -> None:
    if tuple(own) != tuple(image):
        raise ValueError(
            f"The annotation of '{sample.get('img_path')}' has {own[0]}x"
            f'{own[1]} pixels and its image {image[0]}x{image[1]}; load '
            'annotations before the pipeline resizes.')


#: By kind of task, the annotation of a guide for an image of some height and
#: width.
ANNOTATE: Dict[str, Callable] = dict(
    cls=_cls_annotation, seg=_seg_annotation, det=_det_annotation)


def as_coco(records: Iterable[dict], classes: Sequence[str]) -> dict:
    """Records of a manifest as a json of boxes and masks.

    Args:
        records (Iterable[dict]): Of each image.
        classes (Sequence[str]): Class names.
    """
    images: List[dict] = []
    annotations: List[dict] = []
    for number, record in enumerate(records, 1):
        images.append(
            dict(
                id=number,
                file_name=record['file'],
                height=record['height'],
                width=record['width']))
        for one in record['annotation'] or ():
            annotations.append(
                dict(one, id=len(annotations) + 1, image_id=number))
    categories = [
        dict(id=number, name=name)
        for number, name in enumerate(classes, 1)
    ]
    return dict(
        images=images, annotations=annotations, categories=categories)
