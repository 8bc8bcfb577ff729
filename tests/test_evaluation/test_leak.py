# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Signs of a leak, against slow references and known leaks."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from vim_mm.evaluation.leak import (auc, by_chance, distances, leak_report,
                                    membership_auc, nearness,
                                    reconstruction_errors)


@pytest.mark.parametrize('chunk', [1, 3, 100])
def test_distances(chunk: int) -> None:
    images, others = torch.rand(5, 3, 4, 2), torch.rand(7, 3, 4, 2)
    slow = [[((image - other)**2).mean().sqrt() for other in others]
            for image in images]
    torch.testing.assert_close(
        distances(images, others, chunk), torch.tensor(slow))


def test_a_copy_is_at_distance_zero() -> None:
    images = torch.rand(40, 3, 8, 8)
    assert (distances(images, images).diagonal() == 0).all()


def test_nearness() -> None:
    pairs = torch.rand(6, 10)
    train, held_out = (part.amin(1) for part in pairs.split(5, dim=1))
    wins = [(a < b).float() for a in train for b in held_out]
    assert nearness(pairs, 5) == pytest.approx(float(sum(wins) / 36))


def test_what_chance_gives() -> None:
    """P-values are even where there is no leak, and small where there is."""
    torch.manual_seed(0)
    honest = torch.tensor(
        [by_chance(torch.rand(4, 20), 10, rounds=49) for _ in range(60)])
    assert 0.35 < honest.mean() < 0.65
    assert honest.min() < 0.2 and honest.max() > 0.8
    copies = torch.rand(4, 20)
    copies[:, :10] -= 1
    assert by_chance(copies, 10) <= 0.02


def test_alike_samples_prove_nothing() -> None:
    """All near one image: the AUC is 1, and it is chance whose image."""
    pairs = torch.rand(50, 20) + 1
    pairs[:, 3] = 0.5
    assert nearness(pairs, 10) == 1
    assert by_chance(pairs, 10) > 0.4


@pytest.mark.parametrize('levels', [3, 1000])  # with many ties, and few
def test_auc(levels: int) -> None:
    scores = torch.randint(levels, (30, )).float()
    positives, negatives = scores[:12] + 1, scores[12:]
    slow = sum((p > n) + 0.5 * (p == n)
               for p in positives for n in negatives) / (12 * 18)
    found = auc(positives, negatives)
    assert found == pytest.approx(float(slow))
    assert found == pytest.approx(
        roc_auc_score([1] * 12 + [0] * 18,
                      torch.cat([positives, negatives])))
    assert auc(negatives, positives) == pytest.approx(1 - found)


@pytest.mark.parametrize('positives, negatives', [
    ([], [1.]), ([1.], []), ([float('nan')], [1.]), ([1.], [float('inf')])
])
def test_scores_must_be_there(positives: list, negatives: list) -> None:
    with pytest.raises(ValueError, match='must be finite'):
        auc(torch.tensor(positives), torch.tensor(negatives))


def test_members_are_told_by_small_errors() -> None:
    assert membership_auc(torch.tensor([.1, .2]), torch.tensor([.3])) == 1
    assert membership_auc(torch.tensor([.4]), torch.tensor([.3, .5])) == 0.5


def test_reconstruction_errors() -> None:
    images, decoded = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    for index, error in enumerate(reconstruction_errors(images, decoded)):
        torch.testing.assert_close(
            error, (images[index] - decoded[index]).abs().mean())


def report(kind: str) -> dict:
    """Of a model that gives nothing away, or that memorised its images."""
    torch.manual_seed(0)
    train, held_out, samples = torch.rand(3, 60, 3, 4, 4)
    noise = 0.1 * torch.rand(2, 60, 3, 4, 4)
    decoded = dict(
        honest=(train + noise[0], held_out + noise[1], samples),
        # decodes everything to training images
        memory=(train, train + noise[1], train))[kind]
    return leak_report(train, held_out, *decoded)


def test_a_model_without_a_leak() -> None:
    found = report('honest')
    for key in ('membership_auc', 'samples_auc', 'reconstructions_auc',
                'photographs_auc'):
        assert 0.3 < found[key] < 0.7, key
    assert min(found['samples_p'], found['reconstructions_p']) > 0.05
    assert found['num_train'] == found['num_held_out'] == 60
    assert found['num_compared'] == 30


def test_a_model_with_a_memory() -> None:
    found = report('memory')
    assert found['membership_auc'] == 1
    # half of the training images are compared with
    assert found['samples_auc'] > found['photographs_auc'] + 0.2
    assert found['samples_p'] == found['reconstructions_p'] == 1 / 200
    assert found['samples_to_train_min'] == 0
    assert found['samples_to_held_out_min'] > 0


@pytest.mark.parametrize('train, held_out', [(1, 60), (60, 3), (60, 0)])
def test_too_few_images(train: int, held_out: int) -> None:
    images = torch.rand(60, 3, 4, 4)
    with pytest.raises(ValueError, match='says nothing'):
        leak_report(images[:train], images[:held_out], images[:train],
                    images[:held_out], images)
