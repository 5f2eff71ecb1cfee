"""One training iteration of many small GANs at once: their networks as stacks, everything else member by member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastgan.models.stack import Stack
from fastgan.objectives import gradient_norm
from fastgan.train.step import Pattern, Step
from fastgan.train.stream import Stream

Seen = list[dict[str, Tensor]]  # by member: what its meter is told


class Slices:
    """The gradients of a stack's weights, whose slices are the gradients of the members' weights.

    ``fixed``: always in the same memory, where an optimiser in a captured graph finds them.
    """

    def __init__(self, stack: Stack, fixed: bool) -> None:
        self._parts = [parts for _, parts in stack.shared()]
        self.weights = [whole for whole, _ in stack.shared()]
        self.buffers = [torch.zeros_like(whole) for whole in self.weights] if fixed else []
        self._hand_out(self.buffers)

    def place(self, gradients: Sequence[Tensor]) -> None:
        """Give each member's weights their slices of the stacks' gradients."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, list(gradients))
        else:  # PyTorch's fused optimisers take it that a gradient lies as its weight does
            self._hand_out([gradient.contiguous() for gradient in gradients])

    def _hand_out(self, gradients: Sequence[Tensor]) -> None:
        for parts, gradient in zip(self._parts, gradients, strict=bool(gradients)):
            for part, own in zip(parts, gradient.unbind(), strict=True):
                part.grad = own


class StackStep:
    """One iteration of all members, as ``fastgan.train.step.Step`` has it for one.

    Each member draws what it would draw alone, in the same order. The networks' passes are made for all at once, and
    the gradient of the sum of the members' losses is, slice by slice, that of each one's own. Losses, optimisers,
    meters and penalties are the members': penalties are formed one after the other, each in its member's ``streams``,
    those of the random numbers that it draws; none are given where one stream has to do for all.

    Args:
        steps: the members' own, alike but for seeds and numbers. Their networks' weights become views of stacks.
        streams: of each member, or none.
        updates: as the configuration's.
        noisy: whether any member adds noise to what its discriminator sees.
        fixed: whether gradients always lie in the same memory.
    """

    def __init__(
        self, steps: Sequence[Step], streams: Sequence[Stream], *, updates: str, noisy: bool, fixed: bool
    ) -> None:
        self.steps, self._streams, self._noisy = list(steps), list(streams), noisy
        first = steps[0]
        self._bf16 = first.bf16
        self._valued, self._bound = first.losses.valued, first.losses.bound
        self._objective = first.objective
        self.generator = Stack([step.players.generator for step in steps])
        self.discriminator = Stack([step.players.discriminator for step in steps])
        self._to_generator, self._to_discriminator = (
            Slices(stack, fixed) for stack in (self.generator, self.discriminator)
        )
        self._timed = next((step for step in steps if step.penalty is not None), first)  # it knows when one is due
        self._iterate: Callable[[Pattern], None] = {
            "fresh": self._fresh,
            "shared": self._shared,
            "generator_first": self._generator_first,
        }[updates]

    @property
    def buffers(self) -> list[Tensor]:
        """Memory of gradients that stays where it is."""
        return [*self._to_generator.buffers, *self._to_discriminator.buffers]

    def pattern(self, done: int) -> Pattern:
        """What the host decides about the iteration that follows so many."""
        return self._timed.pattern(done)

    def __call__(self, pattern: Pattern) -> None:
        """Perform one iteration of every member."""
        self._iterate(pattern)

    def _fresh(self, pattern: Pattern) -> None:
        for at in range(pattern.updates):
            with torch.no_grad():
                fake = self._generate(at)
            real = self._real(at)
            seen = self._update_discriminator(real, fake, at, pattern)
            self._next_update(at, seen, pattern)
        moved = self._update_generator(real, self._generate(pattern.updates), pattern)
        self._end(seen, moved)

    def _shared(self, pattern: Pattern) -> None:
        for at in range(pattern.updates):
            fake = self._generate(at)
            real = self._real(at)
            seen = self._update_discriminator(real, fake.detach(), at, pattern)
            self._next_update(at, seen, pattern)
        self._end(seen, self._update_generator(real, fake, pattern))

    def _generator_first(self, pattern: Pattern) -> None:
        """One pass of the discriminator serves both updates: the generator's moves none of its weights."""
        fake, real = self._generate(0), self._real(0)
        shown = self._add_noise(fake, 0)
        leaf = shown.detach().requires_grad_()
        real_logits, fake_logits = self._judge(real, leaf)
        losses = self._losses(fake_logits, real_logits.detach())
        (at_fake,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
        seen = self._to_update_discriminator(real, leaf.detach(), real_logits, fake_logits, 0, pattern)
        moved = self._move_generator(losses, torch.autograd.grad(shown, self._to_generator.weights, at_fake), pattern)
        self._step("discriminator")
        self._end(seen, moved)

    def _update_discriminator(self, real: Tensor, fake: Tensor, at: int, pattern: Pattern) -> Seen:
        fake = self._add_noise(fake, at)
        seen = self._to_update_discriminator(real, fake, *self._judge(real, fake), at, pattern)
        self._step("discriminator")
        return seen

    def _to_update_discriminator(
        self, real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor, at: int, pattern: Pattern
    ) -> Seen:
        """Form the discriminators' gradients; return what is seen on the way."""
        losses = torch.vmap(self.steps[0].losses.of_discriminator)(real_logits, fake_logits)
        self._to_discriminator.place(torch.autograd.grad(losses.sum(), self._to_discriminator.weights))
        seen = self._told(loss_d=losses, **self._scores(real_logits, fake_logits))
        if pattern.penalties[at]:
            self._penalise(real, fake, seen)
        self._balance(real_logits, fake_logits, seen)
        if pattern.watched and at == pattern.updates - 1:
            for own, step, x, y in zip(seen, self.steps, real, fake, strict=True):
                if step.watch.diversity is not None:
                    own["diversity"] = step.watch.diversity(x, y)
        return seen

    def _penalise(self, real: Tensor, fake: Tensor, seen: Seen) -> None:
        """Add each member's penalty to its gradients, by its own network, whose weights are slices of the stack."""
        for at, (own, step, x, y) in enumerate(zip(seen, self.steps, real, fake, strict=True)):
            outputs: list[Tensor] = []
            seeds: list[Tensor] = []
            with self._streams[at].running() if self._streams else nullcontext():
                step._penalise(True, (x, y), outputs, seeds, own)
            if outputs:
                torch.autograd.backward(outputs, seeds, inputs=list(step.players.discriminator.parameters()))

    @torch.no_grad()
    def _balance(self, real_logits: Tensor, fake_logits: Tensor, seen: Seen) -> None:
        """Have each member say whether its discriminator's update is to be skipped."""
        if self.steps[0].watch.balance is None:
            return
        rightly = torch.stack(
            [(real_logits > self._bound).float().mean(1), (fake_logits <= self._bound).float().mean(1)], 1
        )
        for own, step, shares in zip(seen, self.steps, rightly, strict=True):
            assert step.watch.balance is not None
            own["balanced"] = step.watch.balance(shares)

    @torch.no_grad()
    def _scores(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """How each member's batches are judged, as `Losses.scores` says."""
        both = real_logits, fake_logits
        real, fake = (logits.mean(1) if self._valued else logits.sigmoid().mean(1) for logits in both)
        return {"d_real": real, "d_fake": fake}

    def _update_generator(self, real: Tensor, fake: Tensor, pattern: Pattern) -> Seen:
        fake = self._add_noise(fake, pattern.updates)
        if self._objective.needs_real:
            real_logits, fake_logits = self._judge(real, fake)
            losses = self._losses(fake_logits, real_logits)
        else:
            losses = self._losses(self._logits(fake), None)
        return self._move_generator(losses, torch.autograd.grad(losses.sum(), self._to_generator.weights), pattern)

    def _losses(self, fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
        """The generators' losses (members)."""
        given = (fake_logits, real_logits) if self._objective.needs_real else (fake_logits,)
        losses: Tensor = torch.vmap(self._objective.generator)(*given)
        return losses

    def _move_generator(self, losses: Tensor, gradients: Sequence[Tensor], pattern: Pattern) -> Seen:
        self._to_generator.place(gradients)
        seen = self._told(loss_g=losses)
        if pattern.watched:
            for own, step in zip(seen, self.steps, strict=True):
                own["gradient_g"] = gradient_norm(step.players.generator.parameters())
        self._step("generator")
        return seen

    def _step(self, side: str) -> None:
        for step in self.steps:
            getattr(step.players, f"{side}_optimizer").step()

    def _generate(self, at: int) -> Tensor:
        """Each member's samples of its own latents: (members, n, ...)."""
        z = torch.stack([step.draws.z(at) for step in self.steps])
        with self._autocast(z):
            samples: Tensor = self.generator(z)
        return samples

    def _real(self, at: int) -> Tensor:
        return torch.stack([step.draws.real(at) for step in self.steps])

    def _add_noise(self, fake: Tensor, at: int) -> Tensor:
        if not self._noisy:
            return fake
        return torch.stack([step.draws.noisy(own, at) for step, own in zip(self.steps, fake.unbind(), strict=True)])

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both (members, n), by one pass: nothing in these discriminators mixes samples."""
        real_logits, fake_logits = self._logits(torch.cat((real, fake.to(real.dtype)), 1)).chunk(2, 1)
        return real_logits, fake_logits

    def _logits(self, samples: Tensor) -> Tensor:
        with self._autocast(samples):
            logits: Tensor = self.discriminator(samples)
        return logits.float()

    def _told(self, **values: Tensor) -> Seen:
        """Turn values by name, each (members), into values by member."""
        apart = [value.detach().unbind() for value in values.values()]
        return [dict(zip(values, own, strict=True)) for own in zip(*apart, strict=True)]

    def _next_update(self, at: int, seen: Seen, pattern: Pattern) -> None:
        """Note what the discriminators' updates before the last one have seen."""
        if at < pattern.updates - 1:
            for step, own in zip(self.steps, seen, strict=True):
                step.meter.observe(ends=False, **own)

    def _end(self, seen: Seen, moved: Seen) -> None:
        for step, of_d, of_g in zip(self.steps, seen, moved, strict=True):
            if step.watch.mend is not None:
                step.watch.mend()
            step.meter.observe(ends=True, **of_d, **of_g)

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()
