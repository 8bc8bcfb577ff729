# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Split few images into halves that look as different as possible."""

from typing import Sequence

import torch
from torch import Tensor

#: Axes with a smaller share of the first one's variance are rounding noise.
NOISE = 1e-9
#: Default number of splits.
DEALS = 8


def unlike_halves(features: Sequence[Tensor], labels: Tensor, picture: Tensor,
                  num: int) -> Tensor:
    """Split images into unlike halves, in several ways. Ours.

    The few images of a task share photographs, cameras, seasons. After a
    random split the held-out half looks like the training half, and features
    that only fit these surroundings do well, those of the trunk above all. So
    images are sorted by appearance, not by class: along a principal axis of
    their mean features, after class means are subtracted. One half lies below
    the median, the other above; each axis gives one split. Images that show a
    single class are split class by class, those with several labels by the
    rarest of them.

    Features that are compared must be split together. A kind of features that
    makes the split alone is tested hardest, because the halves are farthest
    apart in its own space.

    Args:
        features (Sequence[Tensor]): Features (n, d) of the same rows, one of
            several kinds, each weighing the same.
        labels (Tensor): Class of every row, (n, ), integers, or a column for
            each class, (n, c).
        picture (Tensor): Image of every row, (n, ), integers. Memory
            grows with their number squared, time with its cube: seconds for
            2000.
        num (int): Number of splits; fewer where images have fewer axes.

    Returns:
        Tensor: Booleans (splits, n): whether a row lies in the second half.

    Raises:
        ValueError: If there are fewer images than two, or features are not
            finite.
    """
    pictures, place = picture.unique(return_inverse=True)
    if len(pictures) < 2:
        raise ValueError('Images are to be split into halves, but there is '
                         f'{len(pictures)}; use more of them.')
    if labels.dim() == 1:
        classes, y = labels.unique(return_inverse=True)
        strata = _only_class(y, place, len(classes))
    else:
        y, strata = labels, _rarest_class(labels, place)
    likeness = sum(_likeness(x.detach(), y, place) for x in features)
    if not torch.isfinite(likeness).all():
        raise ValueError('Images cannot be split into halves by features '
                         'that are not finite. Check the weights of the trunk '
                         'and of the modules.')
    variance, axes = torch.linalg.eigh(likeness)
    kept = max(1, int((variance > NOISE * variance[-1]).sum()))
    axes = axes.flip(1)[:, :min(num, kept)].T
    return torch.stack([_above_median(a, strata) for a in axes])[:, place]


def _likeness(x: Tensor, y: Tensor, place: Tensor) -> Tensor:
    """Gram matrix of the images' centred mean features."""
    x = x.double()
    x = x - x.mean(0)
    x = x / x.square().mean(0).clamp(min=1e-12).sqrt()
    means = group_mean(x - _by_class(x, y), place)
    means = means - means.mean(0)
    likeness = means @ means.T
    return likeness / likeness.trace().clamp(min=1e-12)


def _by_class(x: Tensor, y: Tensor) -> Tensor:
    """What the classes alone say of the features of every row."""
    if y.dim() == 1:
        return group_mean(x, y)[y]
    y = torch.cat([y.new_ones(len(y), 1), y], dim=1).to(x)
    return y @ (torch.linalg.pinv(y) @ x)


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """Sum of the rows of every group: (n, d) and (n, ) to (groups, d)."""
    total = x.new_zeros(int(group.max()) + 1, x.shape[1])
    return total.index_add(0, group, x)


def group_mean(x: Tensor, group: Tensor) -> Tensor:
    """Mean row of every group: (n, d) and (n, ) to (groups, d)."""
    return group_sum(x, group) / group.bincount()[:, None]


def _only_class(y: Tensor, place: Tensor, num_classes: int) -> Tensor:
    """The class of each image, ``num_classes`` where it has several."""
    shows = torch.zeros(
        int(place.max()) + 1, num_classes, dtype=torch.bool, device=y.device)
    shows[place, y] = True
    return shows.int().argmax(1).where(shows.sum(1) == 1, num_classes)


def _rarest_class(labels: Tensor, place: Tensor) -> Tensor:
    """Of the labels of each image the rarest, behind all where it has none."""
    shows = group_sum(labels.double(), place) > 0
    rarity = shows * -shows.sum(0).double() - ~shows * len(shows) * 2.
    # of equally rare ones the first
    rarest = rarity.argmax(1)
    return rarest.where(shows.any(1), shows.shape[1])


def _above_median(axis: Tensor, strata: Tensor) -> Tensor:
    axis = axis * axis[axis.abs().argmax()].sign()
    half = torch.zeros_like(strata, dtype=torch.bool)
    odd = 0
    for stratum in strata.unique():
        members = (strata == stratum).nonzero()[:, 0]
        order = members[axis[members].argsort()]
        # images left over go to either half in turn
        half[order[(len(order) + odd) // 2:]] = True
        odd = (odd + len(order)) % 2
    return half
