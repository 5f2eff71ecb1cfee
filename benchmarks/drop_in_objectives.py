"""The losses that go with the styles of ``drop_in_models``, written as their authors do, and a step of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Objective:
    """What two players minimise; ``takes`` names the parts of a batch that each network's forward pass is given."""

    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": ("z",), "D": ("real",)}

    def fake(self, generator: nn.Module | None, batch: Batch) -> Tensor:
        """Generate; where there is no generator the batch has what one would have made."""
        if generator is None:
            return batch["fake"]
        made: Tensor = generator(*(batch[name] for name in self.takes["G"]))
        return made

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the discriminator's loss."""
        raise NotImplementedError

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the generator's loss."""
        raise NotImplementedError


class CrossEntropy(Objective):
    """Of probabilities, with the generator's labels turned round."""

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the mean of both halves."""
        real, made = discriminator(batch["real"]), discriminator(fake)
        return (_cross_entropy(real, 1.0) + _cross_entropy(made, 0.0)) / 2

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return how far the fakes are from passing."""
        return _cross_entropy(discriminator(fake), 1.0)


def _cross_entropy(score: Tensor, label: float) -> Tensor:
    """Return that of probabilities, in fp32: PyTorch refuses it under autocast."""
    with torch.autocast(score.device.type, enabled=False):
        wide = score if score.dtype == torch.float64 else score.float()
        return F.binary_cross_entropy(wide, torch.full_like(wide, label))


class Hinge(Objective):
    """Of scores."""

    def _scores(self, discriminator: nn.Module, batch: Batch, samples: Tensor) -> Tensor:
        scores: Tensor = discriminator(samples, *(batch[name] for name in self.takes["D"][1:]))
        return scores

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the sum of both halves."""
        real = self._scores(discriminator, batch, batch["real"])
        made = self._scores(discriminator, batch, fake)
        return torch.mean(F.relu(1.0 - real)) + torch.mean(F.relu(1.0 + made))

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the negative mean score."""
        return -torch.mean(self._scores(discriminator, batch, fake))


class ConditionalHinge(Hinge):
    """Both networks are told the class."""

    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": ("z", "y"), "D": ("real", "y")}


class LeastSquares(Objective):
    """Of many discriminators, with the distance of their features and of the waves."""

    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": ("mel",), "D": ("wave", "wave")}

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the sum over discriminators."""
        reals, fakes, _, _ = discriminator(batch["wave"], fake)
        loss = fake.new_zeros(())
        for real, made in zip(reals, fakes, strict=True):
            loss = loss + torch.mean((1 - real) ** 2) + torch.mean(made**2)
        return loss

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return scores, features and waves."""
        _, fakes, features_r, features_g = discriminator(batch["wave"], fake)
        loss = 45 * F.l1_loss(fake, batch["wave"])
        for made, ours, theirs in zip(fakes, features_g, features_r, strict=True):
            loss = loss + torch.mean((1 - made) ** 2)
            for own, other in zip(ours, theirs, strict=True):
                loss = loss + 2 * torch.mean(torch.abs(other - own))
        return loss


class Patches(Objective):
    """Cross entropy of patches, given the input picture, and the distance of pictures."""

    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {"G": ("a",), "D": ("a+b",)}

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the mean of both halves."""
        made = discriminator(torch.cat((batch["a"], fake), 1))
        real = discriminator(torch.cat((batch["a"], batch["b"]), 1))
        loss = F.binary_cross_entropy_with_logits
        return (loss(made, torch.zeros_like(made)) + loss(real, torch.ones_like(real))) * 0.5

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return how far the fakes are from passing and from the truth."""
        made = discriminator(torch.cat((batch["a"], fake), 1))
        return F.binary_cross_entropy_with_logits(made, torch.ones_like(made)) + 100 * F.l1_loss(fake, batch["b"])


class WassersteinPenalty(Objective):
    """Scores without bounds, and the model's own gradient penalty."""

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the distance and its penalty."""
        packed: Any = discriminator
        alpha = torch.sigmoid(batch["alpha"][: len(fake) // packed.pac])
        penalty: Tensor = packed.calc_gradient_penalty(batch["real"], fake.detach(), alpha)
        return penalty - (torch.mean(discriminator(batch["real"])) - torch.mean(discriminator(fake)))

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return the negative mean score."""
        return -torch.mean(discriminator(fake))


class LogisticR1(Objective):
    """Softplus of scores, and R1's penalty on real samples."""

    def loss_d(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return both halves and the penalty."""
        real = batch["real"].detach().requires_grad_(True)
        scores = discriminator(real)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        penalty = slope.pow(2).reshape(slope.shape[0], -1).sum(1).mean()
        return F.softplus(-scores).mean() + F.softplus(discriminator(fake)).mean() + 5 * penalty

    def loss_g(self, discriminator: nn.Module, batch: Batch, fake: Tensor) -> Tensor:
        """Return how far the fakes are from passing."""
        return F.softplus(-discriminator(fake)).mean()


def step(
    objective: Objective,
    generator: nn.Module | None,
    discriminator: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    batch: Batch,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Train once as such code does, the discriminator first, on a batch of fakes that both use; return the losses."""
    with autocast():
        fake = objective.fake(generator, batch)
        loss_d = objective.loss_d(discriminator, batch, fake.detach())
    optimizers["D"].zero_grad(set_to_none=True)
    loss_d.backward()
    optimizers["D"].step()
    if generator is None:
        return loss_d.detach().reshape(1)
    with autocast():
        loss_g = objective.loss_g(discriminator, batch, fake)
    optimizers["G"].zero_grad(set_to_none=True)
    loss_g.backward()
    optimizers["G"].step()
    return torch.stack([loss_d.detach(), loss_g.detach()])
