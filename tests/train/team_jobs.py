"""What the processes of a test's team do: run by test_distributed.py in each of them, and in its own process alone."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import fastgan
from fastgan import Trainer, optim
from fastgan.errors import LostPeersError, NonFiniteError, UserError
from fastgan.nn import BatchNorm1dAct, Chain, LinearAct
from fastgan.ops import peers
from fastgan.train import capture, checkpoint, joining
from fastgan.train.state import averaged

GENTLE = {f"{side}_optimizer.eps": 1e-2 for side in ("generator", "discriminator")}  # noise is not blown up to steps
SMALL = {"batch_size": 12, "log_every": 3, "checkpoint_every": 100, "device": "cpu", "threads": 1, **GENTLE}
MLP = {"z_dim": 4, "generator.hidden": [16, 16], "discriminator.hidden": [16], **SMALL}
DCGAN = {"data": "digits", "image_size": None, "z_dim": 4, "generator.width": 4, "discriminator.width": 4, **SMALL}
PHOTOS = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
MOVING = {"generator_lr": {"to": 1e-4, "steps": 5}, "noise": {"to": 0.05, "steps": 4}}
GP = {"penalty.name": "gradient_penalty", "penalty.weight": 10.0}
CASES = {
    "generator first": ("mlp", {**MLP, "data": "digits"}),
    "both normalised": ("dcgan", {**DCGAN, "data": PHOTOS, "noise": 0.1, "flip": True, "ema.decay": 0.9}),
    "critics": ("gan-digits", {**MLP, "objective": "wasserstein", "n_critic": 2, **GP}),
    "normalised critic": ("dcgan", {**DCGAN, "updates": "fresh", "n_critic": 2, **GP, "penalty.name": "zero_centered"}),
    "against averages": ("gan-digits", {**MLP, "objective": "relativistic_average", "penalty.name": "dragan"}),
    "in pairs": ("gan-digits", {**MLP, "objective": "relativistic", "penalty.name": "r1_r2", "penalty.every": 2}),
    "balanced": ("ring8", {**MLP, "balance": "auto", "on_nan": "skip", "discriminator_optimizer.lr": 2e-2}),
    "told classes": (
        "hinge-sngan",
        {**DCGAN, "generator.name": "cresnet", "discriminator.name": "cresnet", "n_critic": 2},
    ),
    "guessed classes": ("acgan", {**DCGAN, "discriminator.dropout": 0.0}),
    "moving": ("gan-digits", {**MLP, "schedules": MOVING, "latent": "discrete", "ema.decay": 0.9}),
}
CAPTURED = ("both normalised", "critics")  # under the rules of a CUDA graph


class Lopsided(nn.Module):
    """Norms of torch.nn's and of ours outside a Chain, of samples with and without a length."""

    def __init__(self):
        super().__init__()
        self.first, self.last = LinearAct(4, 12, activation="none"), nn.Linear(12, 2)
        self.norms = nn.ModuleList([nn.BatchNorm1d(3, momentum=None), BatchNorm1dAct(12, activation="tanh")])
        self.drop = nn.Dropout(0.0)

    def forward(self, z):
        return self.last(self.drop(self.norms[1](self.norms[0](self.first(z).view(-1, 3, 4)).flatten(1))))


def trained(name, captured=False):
    """What a case leaves: its rows, and both networks with their averages."""
    preset, keys = CASES[name]
    with capture.strict() if captured else nullcontext():
        trainer = Trainer(preset, **keys)
        trainer.fit(24 if name == "balanced" else 6, progress=False)  # until some updates are skipped
    return trainer


def left(trainer):
    tensors = {f"g.{key}": value for key, value in trainer.generator.state_dict().items()}
    tensors |= {f"d.{key}": value for key, value in trainer.discriminator.state_dict().items()}
    tensors |= {f"ema.{key}": value for key, value in (averaged(trainer.players) or {}).items()}
    return {"rows": trainer.history, "tensors": {key: value.clone() for key, value in tensors.items()}}


def own_networks(rank=0):
    """Networks of a user's, which begin with other weights in each process, and are the first one's then."""
    torch.manual_seed(7 + rank)
    data = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    generator = Lopsided()
    players = {"generator": generator, "discriminator": discriminator}
    optimizers = {side: optim.SGD(network.parameters(), lr=0.1) for side, network in players.items()}
    trainer = Trainer(**players, data=data, optimizers=optimizers, **{**SMALL, "z_dim": 4})
    return trainer.fit(4, progress=False)


def cases(rank, size, folder):
    """Train all cases; the first process keeps what they leave, the others whether they have the same."""
    for name in CASES:
        torch.save(left(trained(name)), folder / f"{name}.{rank}.pt")
    torch.save(left(own_networks(rank)), folder / f"own.{rank}.pt")
    for name in CAPTURED:
        torch.save(left(trained(name, captured=True)), folder / f"{name} captured.{rank}.pt")


def dropping(folder, steps, resumed=None):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    data = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    keys = {**SMALL, "z_dim": 4, "checkpoint_every": 2, **GP}
    trainer = Trainer(generator=generator, discriminator=discriminator, data=data, out=folder, **keys)
    if resumed:
        trainer.resume(checkpoint.load(checkpoint.whole(resumed / "checkpoints")[-1]))
    return trainer.fit(steps, progress=False)


def streams(rank, size, folder):
    """Networks that draw for themselves: each process its own, which a checkpoint keeps."""
    whole = dropping(folder / "whole", 8)
    halves = [dropping(folder / "half", 4), dropping(folder / "half", 8, resumed=folder / "half")]
    drawn = [trainer._parts.stream.state()["cpu"] for trainer in (whole, halves[1])]
    torch.save({"whole": left(whole), "half": left(halves[1]), "drawn": drawn}, folder / f"streams.{rank}.pt")


def said(act):
    """What an error says, by its kind."""
    try:
        act()
    except (UserError, NonFiniteError, LostPeersError, OSError) as error:
        return [type(error).__name__, str(error)]
    return None


def mishaps(rank, size, folder):
    """What each process says where something is wrong in one or all of them."""

    def poisoned():
        calls = iter(range(100))

        def losses(real_logits, fake_logits):
            spoilt = float("nan") if rank == 1 and next(calls) == 8 else 0.0  # two calls a step
            return fake_logits.mean() - real_logits.mean() + spoilt, -fake_logits.mean()

        Trainer("ring8", objective=losses, out=folder / "nan", **MLP).fit(40, progress=False)

    def unwritable():
        (folder / "file").touch()
        Trainer("ring8", **MLP, out=folder / "file" / "run").fit(3, progress=False)

    def spoilt_best():
        keys = {**MLP, "checkpoint_every": 3, "keep_best": "loss_g"}
        run = Trainer("ring8", **keys, out=folder / "best").fit(3, progress=False)
        if rank == 0:
            (folder / "best/checkpoints/best/step-00000003/manifest.json").write_text("{")
        run.fit(6, progress=False)

    def missing_board():
        with mock.patch.dict(sys.modules, {"tensorboard": None}):
            Trainer("ring8", **MLP, tensorboard=True)

    class Strange(nn.BatchNorm1d):
        pass

    found = {
        "batch": said(lambda: Trainer("ring8", **{**MLP, "batch_size": 13})),
        "device": said(lambda: Trainer("ring8", **{**MLP, "device": "cuda:0"})),
        "configuration": said(lambda: Trainer("ring8", **{**MLP, "seed": rank})),
        "data": said(lambda: Trainer("ring8", data=torch.rand(40 + rank, 2), **MLP)),
        "norm": said(lambda: Trainer("ring8", discriminator=nn.Sequential(nn.Linear(2, 1), Strange(1)), **MLP)),
        "nan": said(poisoned),
        "folder": said(unwritable),
        "best": said(spoilt_best),
        "board": said(missing_board),
    }
    (folder / f"mishaps.{rank}.json").write_text(json.dumps(found))


def norms(rank, size, folder):
    """A norm's values, first and second derivatives and running statistics, of a part of a batch."""
    results = {}
    for kind, shape in (("rows", (12, 5)), ("images", (12, 5, 3, 2))):
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 100
        rows = slice(rank * 12 // size, (rank + 1) * 12 // size)
        x = whole[rows].requires_grad_()
        vectors = [torch.linspace(0.5, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        running = [torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
        with peers.together(peers.Peers(rank, size) if size > 1 else None):
            out = fastgan.ops.batch_norm_act(x, *running, *vectors, training=True, activation="tanh")
            (slope,) = torch.autograd.grad(out.cos().sum(), x, create_graph=True)
            second = torch.autograd.grad(slope.square().sum(), [x, *vectors])
        results[kind] = [out.detach(), slope.detach(), second[0], *running]
    torch.save(results, folder / f"norms.{rank}.pt")


def wrapped(rank, size, folder):
    """Layers of fastgan.nn under DistributedDataParallel, and torch.nn's in the same place; a step made by capture."""
    torch.manual_seed(0)
    ours = Chain(LinearAct(3, 8, activation="leaky_relu"), nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    theirs = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))
    gradients = []
    for model in (nn.parallel.DistributedDataParallel(ours), nn.parallel.DistributedDataParallel(theirs)):
        model(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    wrapper = nn.parallel.DistributedDataParallel(ours)
    optimizer = optim.SGD(wrapper.parameters(), lr=0.1)

    def step(values):
        optimizer.zero_grad(set_to_none=True)
        loss = wrapper(values).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    captured = fastgan.capture(step, state=[wrapper, optimizer])
    for _ in range(3):
        captured(x)
    torch.save({"gradients": gradients, "weights": [p.detach() for p in ours.parameters()]}, folder / f"ddp.{rank}.pt")


def main(rank, size, port, folder, jobs):
    """Be one process of a team."""
    sys.stdout = sys.stderr = (folder / f"log.{rank}").open("a")
    settings = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in settings.items()}, FASTGAN_TIMEOUT="30")
    torch.set_num_threads(1)
    joining.join("cpu")
    for job in jobs:
        globals()[job](rank, size, Path(folder))
    joining.leave()
