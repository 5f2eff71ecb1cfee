"""Penalties on a critic: of its gradient at samples, and of how far its logits are from where they were.

All are pure functions of a critic and samples (LeCam: of logits), formed in float32 (float64 stays), differentiable in
the critic's weights, and read nothing back to the host: a CUDA graph can hold them. Each returns the plain value; the
weight in front of it is the caller's. A critic is a callable ``critic(samples, *args) -> logits`` with samples along
dimension 0 of both, ``args`` being what else it takes (labels); where a sample has several logits (patches), they are
summed. It must be eager: torch.compile gives no second derivatives. A critic that mixes samples, as BatchNorm does in
training, makes each gradient that of the whole batch's logits; these penalties were made for critics that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.errors import UserError
from fastgan.ops import peers
from fastgan.ops.interpolate import interpolate
from fastgan.ops.norm_penalty import norm_penalty

Critic = Callable[..., Tensor]
NOISE = 0.5  # of the standard deviation of a batch, DRAGAN's


class Penalty(NamedTuple):
    """A penalty on the gradient of a critic: its value, and what to watch beside it. Both float32 scalars."""

    value: Tensor  # differentiable in the critic's weights
    norm: Tensor  # mean of ||grad D|| over the samples where it was taken, detached


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *args: object,
    center: float = 1.0,
    one_sided: bool = False,
    rng: Tensor | None = None,
) -> Penalty:
    """E[(||grad D(x)|| - center)^2] at random points x between real and fake samples: WGAN-GP.

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", eq. 3 (there times 10). ``one_sided``
    counts only gradients that are too long, E[max(0, ||grad D(x)|| - center)^2]: WGAN-LP, Petzka et al. 2018.
    Where a gradient is 0 its norm has none: 0 is taken, not NaN.

    Args:
        critic: samples, *args -> logits. With labels in ``args``, real and fake are samples of the same ones.
        real, fake: (n, ...), of one shape. Neither receives a gradient.
        args: what else the critic takes.
        center: the norm to be at.
        one_sided: shorter gradients are free.
        rng: int64 (2) on the device, seed and offset of where x lies; None: drawn by PyTorch's generator.

    Raises:
        UserError: for batches of different shapes, which cannot be paired: draw as many fake samples as real ones; and
            for a critic that is compiled, or whose logits do not depend on the samples.
    """
    return _norms(_gradient(critic, _between(real, fake, rng), *args), center=center, one_sided=one_sided)


def zero_centered(critic: Critic, real: Tensor, fake: Tensor, *args: object, rng: Tensor | None = None) -> Penalty:
    """E[||grad D(x)||^2] at random points x between real and fake samples: 0-GP.

    Source: Thanh-Tung, Tran and Venkatesh 2019, "Improving Generalization and Stability of Generative Adversarial
    Networks". Arguments and errors as :func:`gradient_penalty`.
    """
    return _norms(_gradient(critic, _between(real, fake, rng), *args))


def r1(critic: Critic, real: Tensor, *args: object) -> Penalty:
    """E[||grad D(x)||^2] / 2 at real samples: R1. Times the paper's gamma it is the paper's penalty.

    Source: Mescheder, Geiger and Nowozin 2018, "Which Training Methods for GANs do actually Converge?", eq. 9:
    gamma / 2 E[||grad D||^2]. Where logits of the real samples are there already, :func:`r1_from` spares a pass.

    Args:
        critic: samples, *args -> logits.
        real: (n, ...). It receives no gradient.
        args: what else the critic takes.

    Raises:
        UserError: for a critic that is compiled, or whose logits do not depend on the samples.
    """
    return _norms(_gradient(critic, real.detach(), *args), scale=0.5)


def r2(critic: Critic, fake: Tensor, *args: object) -> Penalty:
    """E[||grad D(x)||^2] / 2 at generated samples, with respect to the critic alone: R2 (Mescheder et al. 2018).

    Source, arguments and errors as :func:`r1`.
    """
    return r1(critic, fake, *args)


def r1_from(logits: Tensor, samples: Tensor) -> Penalty:
    """Return R1 (of generated samples: R2) from logits that the critic has given already.

    Real and generated samples may have gone through in one batch::

        real.requires_grad_()
        real_logits, fake_logits = critic(torch.cat([real, fake])).chunk(2)
        loss = discriminator_loss("non_saturating", real_logits, fake_logits)
        loss = loss + gamma * r1_from(real_logits, real).value

    Args:
        logits: (n, ...), the critic's.
        samples: (n, ...), which required a gradient when they went into the critic.

    Raises:
        UserError: for samples that did not, a compiled critic, and logits that do not depend on the samples.
    """
    if not samples.requires_grad:
        raise UserError("r1_from needs samples that require a gradient: samples.requires_grad_() before the critic")
    return _norms(_differentiate(logits, samples), scale=0.5)


def dragan(critic: Critic, real: Tensor, *args: object, center: float = 1.0) -> Penalty:
    """E[(||grad D(x + d)|| - center)^2] around real samples, d normal with half the batch's deviation: DRAGAN.

    Source: Kodali et al. 2017, "On Convergence and Stability of GANs": d ~ N(0, c I). Its c is here the square of half
    the deviation of all the batch's elements, the size of the noise in the authors' code, which draws it uniform from
    0 up. Deviation, noise and sum are three launches of PyTorch's, by its generator, and no kernel of ours: one would
    spare a launch, and that the noise is written and read, beside all the products that the critic takes.

    Args:
        critic: samples, *args -> logits.
        real: (n, ...). It receives no gradient.
        args: what else the critic takes.
        center: the norm to be at, the paper's k.

    Raises:
        UserError: for a critic that is compiled, or whose logits do not depend on the samples.
    """
    _floating(real)
    with torch.no_grad():
        around = torch.addcmul(real, _noise_like(real), _deviation(real), value=NOISE)
    return _norms(_gradient(critic, around, *args), center=center)


class Anchors(nn.Module):
    """Moving averages of a critic's logits on real and on generated samples, for :func:`lecam`.

    Buffers ``real`` and ``fake`` (running sums) and ``weight`` (what the sums weigh: the averages start without bias)
    are float32 scalars on the device and belong into a checkpoint.

    Args:
        decay: of the averages, for each batch.
    """

    real: Tensor
    fake: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"decay {decay}: it has to be at least 0 and below 1")
        self.decay = decay
        for name in ("real", "fake", "weight"):
            self.register_buffer(name, torch.zeros((), device=device))

    def update(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Move the averages by those of a batch."""
        with torch.no_grad():
            means = [peers.mean(_full(logits).mean()).to(self.weight.dtype) for logits in (real_logits, fake_logits)]
            targets = [*means, torch.ones_like(self.weight)]
            torch._foreach_lerp_([self.real, self.fake, self.weight], targets, 1 - self.decay)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the averages on real and on generated samples; NaN before the first update."""
        return self.real / self.weight, self.fake / self.weight


def lecam(real_logits: Tensor, fake_logits: Tensor, anchors: Anchors) -> Tensor:
    """E[(D(real) - a_fake)^2] + E[(D(fake) - a_real)^2], a being moving averages of D: a float32 scalar.

    Source: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data", section 3: each side
    is drawn to where the other one was, from both sides as the paper has it; its published code counts only what lies
    beyond, relu(D(real) - a_fake)^2 and relu(a_real - D(fake))^2. Moves the anchors first where they are in training
    mode. Differentiable in the logits as often as asked; the anchors are constants.

    Args:
        real_logits, fake_logits: any shapes.
        anchors: the averages, on the logits' device.
    """
    if anchors.training:
        anchors.update(real_logits, fake_logits)
    a_real, a_fake = anchors.means()
    return (_full(real_logits) - a_fake).square().mean() + (_full(fake_logits) - a_real).square().mean()


def _between(real: Tensor, fake: Tensor, rng: Tensor | None) -> Tensor:
    """Return a random point between each real sample and its fake one."""
    if real.shape != fake.shape:
        shapes = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise UserError(f"real and fake samples are paired, so they have one shape, not {shapes}: draw as many of each")
    return interpolate(real.detach(), fake.detach(), rng)


def _gradient(critic: Critic, samples: Tensor, *args: object) -> Tensor:
    """Return the gradient of the critic's logits at detached samples."""
    _floating(samples)
    with torch.enable_grad():
        samples = samples.requires_grad_()
        logits = critic(samples, *args)
    return _differentiate(logits, samples)


def _floating(samples: Tensor) -> None:
    """Refuse samples that nothing can be differentiated by."""
    if not samples.is_floating_point():
        kind = str(samples.dtype).removeprefix("torch.")
        raise UserError(f"a critic's gradient is taken at samples in floating point, not {kind}: scale them first")


def _noise_like(samples: Tensor) -> Tensor:
    """Return normal noise of the samples' shape, in their layout."""
    if peers.current() is None:
        return torch.randn_like(samples)

    def draw(rows: int, generator: torch.Generator | None) -> Tensor:
        return torch.empty_like(samples[:1].expand(rows, *samples.shape[1:])).normal_(generator=generator)

    return peers.whole(draw, len(samples))


def _deviation(samples: Tensor) -> Tensor:
    """Return the standard deviation of all elements of a batch, ()."""
    if peers.current() is None:
        return samples.std(correction=0)
    return peers.var_mean(_full(samples), range(samples.dim()))[0].sqrt().to(samples.dtype)


def _differentiate(logits: Tensor, samples: Tensor) -> Tensor:
    """Return the gradient of the sum of the logits, with a graph of its own where one is being recorded."""
    gradient, recorded = None, torch.is_grad_enabled()
    if logits.requires_grad:
        ones = torch.ones_like(logits)
        (gradient,) = torch.autograd.grad(logits, samples, ones, create_graph=recorded, allow_unused=True)
    if gradient is None:
        raise UserError("the critic's logits do not depend on its samples: it may detach them, or run under no_grad")
    if recorded and _compiled(gradient, logits):
        raise UserError("the critic is compiled, and torch.compile gives no second derivatives: keep the critic eager")
    return gradient


def _compiled(gradient: Tensor, logits: Tensor) -> bool:
    """Whether torch.compile made what stands between samples and logits: the derivative of that has none of its own."""
    if not _leads_to(logits, "CompiledFunctionBackward"):
        return False
    return gradient.grad_fn is None or _leads_to(gradient, "CompiledFunctionBackwardBackward")


def _leads_to(tensor: Tensor, name: str) -> bool:
    """Whether the graph behind a tensor has a node of that name."""
    found = [tensor.grad_fn]
    seen = set(found)
    while found:
        node = found.pop()
        if node is None:
            continue
        if node.name() == name:
            return True
        for later, _ in node.next_functions:
            if later not in seen:
                seen.add(later)
                found.append(later)
    return False


def _full(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _norms(gradient: Tensor, **how: Any) -> Penalty:
    """Return the penalty on the norms of the samples' gradients."""
    return Penalty(*norm_penalty(gradient, **how))
