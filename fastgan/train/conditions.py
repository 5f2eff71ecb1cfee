"""Training by sampling: rows of a table drawn by a condition, one category of one column, which both networks are told.

A column is drawn, each as likely, then one of its categories by the logarithm of its count, then a row that has it
(Xu et al., 2019, section 4.3). All of it follows on the device from the seed and the clock: a graph replays it, and a
run that is resumed needs nothing else. Real rows have the fake ones' conditions in another order, as in CTGAN's code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan import ops
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.presets import Config
from fastgan.train.capture import runner_for
from fastgan.train.dials import Dials
from fastgan.train.draws import ClockDraws, HostDraws, Part, draws

CONDITIONS = 5  # added to the run's seed


def told(generator: nn.Module) -> int:
    """Numbers of the condition that a generator is told behind its latents, and passes on behind its samples."""
    return int(getattr(generator, "conditions", 0))


class Drawn(NamedTuple):
    """Conditions of a whole batch, and of real rows, with the rows."""

    fake: Tensor
    real: Tensor
    rows: Tensor


class Conditions:
    """What a step is told, and the real rows that go with it. Sets the generator's ``shares`` to the table's.

    Raises UserError for data that do not lie on the device.
    """

    def __init__(self, generator: nn.Module, data: Dataset, config: Config, dials: Dials, part: Part) -> None:
        if not data.resident or data.file is not None or config.resident == "never":
            raise UserError(
                f"conditions are drawn among rows on the device, and {data.name} does not lie there: set resident=auto,"
                " or generator.conditional=false"
            )
        self._data, self._config, self._clock, self._part = data, config, dials.clock, part
        self._per_step = config.critic_warmup.most(config.n_critic) + 1
        self._width, self._all = data.sample_shape[0], torch.arange(told(generator), device=data.device)
        columns: list[tuple[int, int]] = generator.categories  # type: ignore[assignment]
        counts, orders, weights = [], [], []
        for start, stop in columns:
            kinds = data.images[:, start:stop].argmax(1)
            counts.append(kinds.bincount(minlength=stop - start))
            orders.append(kinds.argsort(stable=True))
            logs = counts[-1].double().log1p()
            weights.append(logs / logs.sum() / len(columns))
        self._counts, self._orders = torch.cat(counts), torch.cat(orders)
        self._starts = self._counts.cumsum(0) - self._counts
        self._ends = torch.cat(weights).cumsum(0).float()
        self._ends[int(self._counts.nonzero().max()) :] = 2.0  # rounding leaves none over for what no row has
        shares = self._counts / (len(data) * len(columns))
        generator.shares.copy_(shares)  # type: ignore[operator]

    def drawn(self, at: int) -> Drawn:
        """The conditions of draw ``at`` of this iteration, int64 (batch_size,), and the real rows."""
        config = self._config
        uniform = ops.latent(
            self._clock,
            shape=(3, config.batch_size),
            seed=config.seed + CONDITIONS,
            site=(config.critic_warmup.most(config.n_critic) + 1, at),
            kind="uniform",
        )
        which, row, order = (uniform / 2 + 0.5).unbind()
        fake = torch.searchsorted(self._ends, which, right=True)
        real = fake[order.argsort()]
        count = self._counts[real]
        among = torch.minimum((row * count).long(), count - 1)
        return Drawn(fake, real, self._orders[self._starts[real] + among])

    def beside(self, z: Tensor, at: int) -> Tensor:
        """Latents ``at`` with their conditions behind them."""
        return torch.cat((z, self._onehot(self.drawn(at).fake, z.dtype)), 1)

    def real(self, at: int) -> tuple[Tensor, Tensor]:
        """Real rows ``at``, and their conditions."""
        drawn, (first, rows) = self.drawn(at), self._part
        own = self._data.batch(drawn.rows[first:][:rows])
        return own, self._onehot(drawn.real, own.dtype)

    def split(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and the conditions behind them."""
        return samples[:, : self._width], samples[:, self._width :]

    def _onehot(self, kinds: Tensor, dtype: torch.dtype) -> Tensor:
        first, rows = self._part
        return (kinds[first:][:rows, None] == self._all).to(dtype)


class _ByHost(HostDraws):
    """Draws of the host, with conditions."""

    conditions: Conditions

    def z(self, at: int) -> Tensor:
        return self.conditions.beside(super().z(at), at)

    def real(self, at: int) -> Tensor:
        rows, kinds = self.conditions.real(at)
        return torch.cat((super().noisy(rows, at), kinds), 1)

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        rows, kinds = self.conditions.split(samples)
        return torch.cat((super().noisy(rows, at), kinds), 1)


class _ByClock(ClockDraws):
    """Draws by the clock, with conditions."""

    conditions: Conditions

    def z(self, at: int) -> Tensor:
        return self.conditions.beside(super().z(at), at)

    def real(self, at: int) -> Tensor:
        rows, kinds = self.conditions.real(at)
        return torch.cat((super().noisy(rows.to(self._dtype), at), kinds.to(self._dtype)), 1)

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        rows, kinds = self.conditions.split(samples)
        return torch.cat((super().noisy(rows, at), kinds), 1)


def conditioned(
    generator: nn.Module, data: Dataset, config: Config, dials: Dials, device: torch.device, bf16: bool, part: Part
) -> HostDraws | ClockDraws:
    """What ``fastgan.train.draws.draws`` returns; with conditions, for a generator that is told them."""
    if not told(generator):
        return draws(data, config, dials, device, bf16, part)
    conditions = Conditions(generator, data, config, dials, part)
    made: _ByHost | _ByClock
    if runner_for(device) is not None:
        made = _ByClock(data, config, dials, torch.bfloat16 if bf16 else torch.float32, part)
    else:
        made = _ByHost(data, config, dials, device, part)
    made.conditions = conditions
    return made
