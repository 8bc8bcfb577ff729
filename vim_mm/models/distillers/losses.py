# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Losses between a layer of a student and one of its teacher.

Both come as tokens (B, L, C) of the same L places, the teacher's without
gradient. Other losses of the libraries that take ``(pred, target)``, such as
``mmdet.MSELoss``, fit as well. All compute in single precision.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_number
from ..autocast import exact

#: Temperatures; beyond, probabilities are 0 and 1, or all the same.
_COLDEST, _HOTTEST = .01, 1000.
#: Losses of the libraries that read class scores.
_OF_SCORES = ('KnowledgeDistillationKLDivLoss', )


def takes_scores(loss: nn.Module) -> bool:
    """Whether a loss compares class scores, by their softmax or sigmoid.

    Those that do have ``of_logits``; others compare tokens of any kind.
    """
    return getattr(loss, 'of_logits', type(loss).__name__ in _OF_SCORES)


def refuse_scores(loss: nn.Module, where: str) -> None:
    """Refuse a loss of class scores between features.

    Args:
        loss (nn.Module): The loss.
        where (str): Between what it stands.

    Raises:
        ValueError: If it is one.
    """
    if takes_scores(loss):
        raise ValueError(
            f'{type(loss).__name__} compares class scores, and {where} is of '
            'features, of which channels would be taken for classes; take a '
            "loss of features, such as 'vim_mm.CosineSmoothL1', or layers "
            "'logits'.")


def refuse_labels(loss: nn.Module, where: str) -> None:
    """Refuse a loss that takes the teacher's scores for labels.

    Raises:
        ValueError: If it is one.
    """
    if 'CrossEntropy' in type(loss).__name__:
        raise ValueError(
            f'{type(loss).__name__} compares scores with labels, and {where} '
            "is of two networks' scores; take 'vim_mm.LogitsKL'.")


def refuse_softmax(loss: nn.Module, cfg: dict, where: str) -> None:
    """Refuse a softmax over one class, which is 1 whatever its score.

    Raises:
        ValueError: If a loss takes one.
    """
    if takes_scores(loss) and not cfg.get('sigmoid'):
        raise ValueError(
            f'{type(loss).__name__} takes the softmax of one class, and '
            f'{where} would be 0 always; take '
            "dict(type='vim_mm.LogitsKL', sigmoid=True).")


@MODELS.register_module()
class LogitsKL(nn.Module):
    r"""Kullback-Leibler divergence of the student from the teacher.

    .. math:: \tau^2 \, KL(p(z_T / \tau) \,\|\, p(z_S / \tau))

    summed over classes, mean over places and images. Exclusive classes are
    compared by softmax, others each by its own sigmoid.

    Args:
        tau (float): Temperature. Defaults to 4.
        sigmoid (bool): Whether classes do not exclude each other. Between
            two layers ``logits`` it is taken from the head if left out.
            Defaults to False.
        by_confidence (bool): Whether a place counts by the teacher's largest
            probability there, which keeps the background of detection from
            outweighing the objects. Defaults to False.
    """

    of_logits = True

    def __init__(self,
                 tau: float = 4.,
                 sigmoid: bool = False,
                 by_confidence: bool = False) -> None:
        super().__init__()
        check_number(tau, 'tau')
        if not _COLDEST <= tau <= _HOTTEST:
            raise ValueError(
                f'`tau` is {tau}, by which scores are divided, and single '
                f'precision has no digits for that; give a number from '
                f'{_COLDEST} to {_HOTTEST}.')
        self.tau = tau
        self.sigmoid = sigmoid
        self.by_confidence = by_confidence

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of logits (B, L, C), a scalar."""
        with exact(student.device.type):
            student = student.float() / self.tau
            teacher = teacher.float() / self.tau
            if self.sigmoid:
                target = teacher.sigmoid()
                # both in the form that is exact for large logits
                kl = F.binary_cross_entropy_with_logits(
                    student, target,
                    reduction='none') - F.binary_cross_entropy_with_logits(
                        teacher, target, reduction='none')
            else:
                teacher = teacher.log_softmax(-1)
                target = teacher.exp()
                kl = target * (teacher - student.log_softmax(-1))
            kl = kl.sum(-1)
            if self.by_confidence:
                confidence = target.amax(-1)
                mean = (kl * confidence).sum() / confidence.sum()
            else:
                mean = kl.mean()
            return self.tau**2 * mean


@MODELS.register_module()
class CosineSmoothL1(nn.Module):
    """One minus the cosine, and smooth L1, of features at each place.

    The weights are those of AM-RADIO (arXiv 2312.06709).

    Args:
        cosine (float): Weight of the first. Defaults to 0.9.
        smooth_l1 (float): Weight of the second. Defaults to 0.1.
        beta (float): Where smooth L1 turns from square to linear. Defaults
            to 1.
    """

    def __init__(self,
                 cosine: float = 0.9,
                 smooth_l1: float = 0.1,
                 beta: float = 1.) -> None:
        super().__init__()
        check_number(cosine, 'cosine')
        check_number(smooth_l1, 'smooth_l1')
        self.cosine = cosine
        self.smooth_l1 = smooth_l1
        self.beta = beta

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, L, C), a scalar."""
        with exact(student.device.type):
            student, teacher = student.float(), teacher.float()
            angle = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
            distance = F.smooth_l1_loss(student, teacher, beta=self.beta)
            return self.cosine * angle + self.smooth_l1 * distance


@MODELS.register_module()
class LinearCKA(nn.Module):
    """One minus the linear centred kernel alignment of two layers.

    It compares how the places of a batch lie to each other, so widths may
    differ, and neither rotating, scaling nor shifting the features of one
    layer changes it. No projector is needed.

    Args:
        unbiased (bool): Whether to use the unbiased estimate of the alignment
            (arXiv 2010.15327). The plain one tends to 1 for whatever
            features, where their width exceeds the number of places. Defaults
            to True.
    """

    any_width = True

    def __init__(self, unbiased: bool = True) -> None:
        super().__init__()
        self.unbiased = unbiased

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, L, C) and (B, L, D), a scalar.

        Raises:
            ValueError: If there are too few places for the estimate.
        """
        least = 4 if self.unbiased else 2
        if student.shape[:-1].numel() < least:
            raise ValueError(
                f'LinearCKA compares at least {least} places of a batch, and '
                f'here are {student.shape[:-1].numel()}; take larger batches '
                'or a layer with maps.')
        with exact(student.device.type):
            # centring changes neither estimate, and keeps digits
            student, teacher = (
                features - features.mean(0)
                for features in (student.flatten(0, -2).float(),
                                 teacher.flatten(0, -2).float()))
            measure = _unbiased_hsic if self.unbiased else _alignment
            own = measure(student, student) * measure(teacher, teacher)
            own = own.clamp(min=torch.finfo(own.dtype).tiny).sqrt()
            return 1 - measure(student, teacher) / own


def _alignment(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius norm of X^T Y, by the smaller of two products."""
    if len(x) < min(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of HSIC, times n (n - 3), of centred features.

    Of the kernels K = X X^T and L = Y Y^T only the diagonals are needed,
    which the estimate leaves out.
    """
    n = len(x)
    k, l_ = x.square().sum(1), y.square().sum(1)
    # rows of centred kernels sum to zero, so without diagonals to -k and -l
    trace = _alignment(x, y) - (k * l_).sum()
    return trace + k.sum() * l_.sum() / (
        (n - 1) * (n - 2)) - 2 / (n - 2) * (k * l_).sum()
