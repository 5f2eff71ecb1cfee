"""Batch norms of torch.nn whose statistics are those of all processes, while processes train together."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastgan.errors import UserError
from fastgan.nn.batch_norm import BatchNorm1dAct, BatchNorm2dAct
from fastgan.ops import peers
from fastgan.ops.batch_norm_act import batch_norm_act


class _SyncedBatchNorm(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        """Normalise: by all processes' statistics within ``fastgan.ops.peers.together``, else as torch.nn does."""
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        if peers.current() is None or not by_batch:
            return super().forward(input)
        self._check_input_dim(input)
        moves = self.training and self.track_running_stats
        output = batch_norm_act(
            input,
            self.running_mean if moves else None,
            self.running_var if moves else None,
            self.weight,
            self.bias,
            True,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation="none",
            num_batches_tracked=self.num_batches_tracked if moves and self.momentum is None else None,
        )
        if moves and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return output


class SyncedBatchNorm1d(_SyncedBatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d``, synchronised while processes train together. Made by ``sync``."""


class SyncedBatchNorm2d(_SyncedBatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, synchronised while processes train together. Made by ``sync``."""


class SyncedBatchNorm3d(_SyncedBatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d``, synchronised while processes train together. Made by ``sync``."""


SYNCED: dict[type, type[Any]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}
OURS = (*SYNCED.values(), BatchNorm1dAct, BatchNorm2dAct)


def sync(module: nn.Module) -> None:
    """Have each batch norm in a module take part: those of torch.nn become of a subclass, in place, with the same
    parameters, buffers and ``state_dict``; those of fastgan.nn do so as they are, and nn.SyncBatchNorm on a GPU.

    Raises:
        UserError: for a batch norm of another class, of which nobody knows what its ``forward`` does.
    """
    for name, member in module.named_modules():
        if type(member) in SYNCED:
            member.__class__ = SYNCED[type(member)]
        elif isinstance(member, _BatchNorm) and type(member) not in OURS:
            where = next((t.device.type for t in [*member.parameters(), *member.buffers()]), "cpu")
            if not (isinstance(member, nn.SyncBatchNorm) and where == "cuda"):
                raise UserError(
                    f"{name or type(module).__name__} is a {type(member).__name__}, which several processes cannot"
                    " train together: take torch.nn.BatchNorm1d, 2d or 3d, or a norm of fastgan.nn"
                )
