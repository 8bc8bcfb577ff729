# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a generative model gives away of its training images. On tensors."""

from typing import Dict, Union

import torch
from torch import Tensor

Report = Dict[str, Union[int, float]]


def distances(images: Tensor, others: Tensor, chunk: int = 256) -> Tensor:
    """Root mean square differences of all pairs of images.

    Args:
        images (Tensor): Shape (n, ...).
        others (Tensor): Shape (m, ...), same shape of an image.
        chunk (int): Images compared at a time. Defaults to 256.

    Returns:
        Tensor: Shape (n, m).
    """
    others = others.flatten(1)
    found = [
        # differences, not products: near-copies are what matters here
        torch.cdist(
            part.flatten(1),
            others,
            compute_mode='donot_use_mm_for_euclid_dist')
        for part in images.split(chunk)
    ]
    return torch.cat(found) / others.shape[1]**0.5


def auc(positives: Tensor, negatives: Tensor) -> float:
    """Probability that a positive scores above a negative; a tie counts half.

    Args:
        positives (Tensor): Scores (n, ).
        negatives (Tensor): Scores (m, ).

    Raises:
        ValueError: If there is none of either, or a score is not finite.
    """
    for name, scores in (('positive', positives), ('negative', negatives)):
        if not len(scores) or not scores.isfinite().all():
            raise ValueError(f'The {len(scores)} {name} scores of an AUC must '
                             'be finite, and one at least.')
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives)
    not_above = torch.searchsorted(ordered, positives, right=True)
    wins = (below + not_above).double() / 2
    return float(wins.mean() / len(negatives))


def membership_auc(member_errors: Tensor, other_errors: Tensor) -> float:
    """How well the reconstruction error tells who was trained on.

    Args:
        member_errors (Tensor): Error of each training image, (n, ).
        other_errors (Tensor): Error of each held-out image, (m, ).

    Returns:
        float: 0.5 tells nothing apart; 1 means that every training image is
        reconstructed better than any held-out one.
    """
    return auc(-member_errors, -other_errors)


def reconstruction_errors(images: Tensor, decoded: Tensor) -> Tensor:
    """Mean absolute error of each image, (n, )."""
    return (images - decoded).abs().flatten(1).mean(dim=1)


def nearness(pairs: Tensor, num_train: int) -> float:
    """Whether images lie nearer to training images than to held-out ones.

    Args:
        pairs (Tensor): Distances of images to training images and to as many
            held-out ones, (n, 2 * num_train).
        num_train (int): The first so many columns are training images.

    Returns:
        float: Probability that an image is nearer to its nearest training
        image than one is to its nearest held-out image.
    """
    train, held_out = pairs[:, :num_train], pairs[:, num_train:]
    return auc(-train.amin(dim=1), -held_out.amin(dim=1))


def by_chance(pairs: Tensor, num_train: int, rounds: int = 199) -> float:
    """How often :func:`nearness` is as large if the images change places.

    Where nothing is leaked, training and held-out images were drawn alike,
    and any other division of them would have done.

    Args:
        pairs (Tensor): See :func:`nearness`.
        num_train (int): The same.
        rounds (int): Number of random divisions. Defaults to 199.

    Returns:
        float: The p-value of a permutation test, 1 / (rounds + 1) at least.
    """
    found = nearness(pairs, num_train)
    generator = torch.Generator().manual_seed(0)
    orders = (
        torch.randperm(pairs.shape[1], generator=generator)
        for _ in range(rounds))
    reached = sum(
        nearness(pairs[:, order], num_train) >= found for order in orders)
    return (1 + reached) / (1 + rounds)


def leak_report(members: Tensor, held_out: Tensor, decoded_members: Tensor,
                decoded_held_out: Tensor, samples: Tensor) -> Report:
    """Signs that decoded images are copies of training images.

    Decoded images lie nearer to any photograph than photographs lie to each
    other, since they lack detail. So distances are compared for the same
    decoded images: to training images, and to as many held-out ones. An image
    is never compared with what it was decoded from: half of the held-out
    images are decoded, the other half compared with.

    Args:
        members (Tensor): Training images (n, 3, H, W), in random order.
        held_out (Tensor): Other images of the same source, (m, 3, H, W), in
            random order, 4 at least.
        decoded_members (Tensor): Reconstructions of ``members``.
        decoded_held_out (Tensor): Reconstructions of ``held_out``.
        samples (Tensor): Images decoded from random codes, (k, 3, H, W).

    Returns:
        dict: Numbers of images; ``membership_auc``, 0.5 if the
        reconstruction error tells nothing; and for ``samples``,
        ``reconstructions`` and, as control, held-out ``photographs``: median
        and least distance to the nearest training image and to the nearest
        held-out one, ``*_auc`` (:func:`nearness`) and ``*_p``
        (:func:`by_chance`). A small p is a sign of copies.

    Raises:
        ValueError: If there are too few images.
    """
    half = min(len(held_out) // 2, len(members))
    if half < 2:
        raise ValueError(f'A leak report of {len(members)} training and '
                         f'{len(held_out)} held-out images says nothing; give '
                         '4 of each at least.')
    references = torch.cat([members[:half], held_out[-half:]])
    kinds = dict(
        samples=samples,
        reconstructions=decoded_held_out[:half],
        photographs=held_out[:half])
    report: Report = dict(
        num_train=len(members),
        num_held_out=len(held_out),
        num_compared=half,
        membership_auc=membership_auc(
            reconstruction_errors(members, decoded_members),
            reconstruction_errors(held_out, decoded_held_out)))
    for kind, images in kinds.items():
        pairs = distances(images, references)
        for name, part in (('train', pairs[:, :half]),
                           ('held_out', pairs[:, half:])):
            nearest = part.amin(dim=1)
            report[f'{kind}_to_{name}_median'] = float(nearest.median())
            report[f'{kind}_to_{name}_min'] = float(nearest.min())
        report[f'{kind}_auc'] = nearness(pairs, half)
        report[f'{kind}_p'] = by_chance(pairs, half)
    return report
