"""A team of processes that train one run, and what they tell each other: tensors and JSON, nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgan.errors import LostPeersError, NonFiniteError, UserError
from fastgan.ops.peers import Peers
from fastgan.train.lock import held

PATIENCE = timedelta(days=1)  # with who packs or downloads
KINDS: dict[str, type[Exception]] = {"UserError": UserError, "NonFiniteError": NonFiniteError}
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """``size`` processes, of which this one has the number ``rank``; ``device`` is where it computes.

    All of a team make the same calls in the same order. A team of one does everything by itself, and for nothing.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None  # the group that talks between hosts, by tensors on the CPU

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and says what there is to say."""
        return self.rank == 0

    def peers(self, seed: int) -> Peers | None:
        """With whom the ops of a step compute together, what they draw for the whole batch fixed by ``seed``."""
        if not self.many:
            return None
        return Peers(self.rank, self.size, None, torch.Generator(self.device).manual_seed(seed))

    def own_seed(self, seed: int) -> int:
        """The seed of what each process draws for itself (dropout): alone it is ``seed``."""
        if not self.many:
            return seed
        return int(np.random.SeedSequence((seed % 2**64, self.rank)).generate_state(1, np.uint32)[0])

    def part(self, batch_size: int, pac: int = 1) -> tuple[int, int]:
        """The first and the number of this process's rows of a batch.

        Raises UserError unless all have as many, in whole packs of ``pac``.
        """
        rows, rest = divmod(batch_size, self.size)
        if rest or not rows:
            raise UserError(
                f"batch_size {batch_size} is the whole batch and cannot be shared out equally to {self.size} processes:"
                f" take a multiple of {self.size}"
            )
        if rows % pac:
            raise UserError(
                f"batch_size {batch_size} gives {self.size} processes {rows} samples each, which are no whole packs of"
                f" {pac}: take a multiple of {self.size * pac}"
            )
        return self.rank * rows, rows

    def told(self, text: str) -> str:
        """What the first process says."""
        if not self.many:
            return text
        content = torch.tensor(list(text.encode()) if self.first else [], dtype=torch.uint8)
        length = torch.tensor(len(content))
        with self._waiting():
            dist.broadcast(length, 0, group=self.control)
            content = content if self.first else torch.empty(int(length), dtype=torch.uint8)
            if length:
                dist.broadcast(content, 0, group=self.control)
        return bytes(content.tolist()).decode()

    def gathered(self, values: Tensor) -> list[Tensor]:
        """What each process gives, in their order, on the CPU: tensors of one shape and dtype."""
        own = values.detach().cpu().contiguous()
        if not self.many:
            return [own]
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(found, own, group=self.control)
        return found

    def said(self, text: str) -> list[str]:
        """What each process says, in their order."""
        own = torch.tensor(list(text.encode()), dtype=torch.uint8)
        longest = max(int(length) for length in self.gathered(torch.tensor(len(own))))
        texts = self.gathered(torch.cat((own, own.new_zeros(longest - len(own)))))
        return [bytes(found.tolist()).rstrip(b"\0").decode() for found in texts]

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if not self.many:
            return number
        found = torch.tensor(number)
        with self._waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return int(found)

    def lead(self, act: Callable[[], T]) -> T | None:
        """Have the first process do something for all; what it raises, all raise. Returns None in the others."""
        if not self.many:
            return act()
        result, error = None, None
        if self.first:
            try:
                result = act()
            except Exception as raised:
                error = raised
        failed = "" if error is None else json.dumps([type(error).__name__, str(error)])
        said = self.told(failed)
        if error is not None:
            raise error
        if said:
            kind, text = json.loads(said)
            raise KINDS.get(kind, UserError)(text)
        return result

    def path(self, find: Callable[[], Path | None]) -> Path | None:
        """The path that the first process finds or makes."""
        found = self.lead(find)
        return Path(text) if (text := self.told(str(found or ""))) else None

    def agree(self, what: str, text: str) -> None:
        """Raise UserError, in all, unless every process says the same of ``what``."""
        if not self.many:
            return
        texts = self.said(hashlib.sha256(text.encode()).hexdigest())
        others = [rank for rank, other in enumerate(texts) if other != texts[0]]
        if others:
            raise UserError(
                f"rank {others[0]} has another {what} than rank 0: start all processes alike, on the same files"
            )

    def share_weights(self, networks: Sequence[nn.Module]) -> None:
        """Give all processes the first one's parameters and buffers."""
        if not self.many:
            return
        for network in networks:
            for tensor in [*network.parameters(), *network.buffers()]:
                content = tensor.detach().contiguous().cpu()
                flat = content.reshape(-1).view(torch.uint8)
                with self._waiting():
                    dist.broadcast(flat, 0, group=self.control)
                with torch.no_grad():
                    tensor.copy_(content)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Context that the first process goes through before the others, however long that takes: what it packs or
        downloads, they find."""
        patient = replace(self, control=dist.new_group(timeout=PATIENCE, backend="gloo")) if self.many else self
        if not self.first:
            patient.lead(lambda: None)
        failure = ""
        try:
            yield
        except Exception as error:
            failure = json.dumps([type(error).__name__, str(error)])
            raise
        finally:
            if self.first:
                patient.told(failure)
        if self.many:
            dist.destroy_process_group(patient.control)

    @contextlib.contextmanager
    def holding(self, folder: Path | None) -> Iterator[None]:
        """Context in which a folder, made if need be, is this run's. Raises UserError where it is another's."""
        with contextlib.ExitStack() as stack:
            if folder is not None:
                self.lead(lambda: stack.enter_context(held(folder)))
            yield

    def others(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same things of all but the first process, for a checkpoint: ``rank1.NAME`` and so on."""
        found = {}
        for name, values in own.items() if self.many else ():
            for rank, theirs in enumerate(self.gathered(values)[1:], 1):
                found[f"rank{rank}.{name}"] = theirs
        return found

    def own(self, tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
        """This process's own of what ``others`` has put beside the first one's; None where there is none."""
        return tensors.get(name if self.first else f"rank{self.rank}.{name}")

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostPeersError(error) from error


def stored_by_all(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """What all processes of the team that wrote a checkpoint had of a name."""
    return [value for key, value in tensors.items() if key == name or (key.endswith(f".{name}") and key[:4] == "rank")]
