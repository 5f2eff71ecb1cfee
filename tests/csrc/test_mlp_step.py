"""csrc/mlp_step.cu on the CPU: the kernel against the table's interpreter, from the same state; and autograd."""

import pytest
import torch
from torch import nn

import fastgan
from fastgan.nn import BatchNorm1dAct, LinearAct
from fastgan.ops import mlp_step_launch
from fastgan.ops.mlp_step_form import Param, Phase
from fastgan.train import mlp_step
from fastgan.train.capture import strict

GAP = 64  # bytes of NaN between any two tensors


@pytest.fixture(scope="module")
def kernels(cuda_host):
    built = cuda_host.build("mlp_step.cu")
    yield built
    built.close()


class Arena:
    """All slots of a table in one piece of memory, apart from each other, by offsets instead of addresses."""

    def __init__(self, slots):
        self.slots, self.offsets, end = slots, [], GAP
        for slot in slots:
            self.offsets.append(end)
            end += -(-slot.nbytes // 16) * 16 + GAP
        self.memory = torch.full((end,), 0xFF, dtype=torch.uint8)
        for slot, piece in zip(slots, self.pieces(), strict=True):
            piece.copy_(slot.detach().contiguous().reshape(-1).view(torch.uint8))

    def pieces(self):
        return [self.memory[at:][: slot.nbytes] for slot, at in zip(self.slots, self.offsets, strict=True)]

    def take_back(self):
        """Copy what the kernel wrote into the slots; nothing may have been written between them."""
        with torch.no_grad():
            for slot, piece in zip(self.slots, self.pieces(), strict=True):
                slot.copy_(piece.clone().view(slot.dtype).view(slot.shape))
                piece.fill_(0xFF)
        assert bool((self.memory == 0xFF).all())

    def address(self, tensor):
        """Where it stands among the slots; 0 where it does not."""
        for slot, at in zip(self.slots, self.offsets, strict=True):
            if slot.data_ptr() <= tensor.data_ptr() < slot.data_ptr() + max(1, slot.nbytes):
                return at + tensor.data_ptr() - slot.data_ptr()
        return 0


def run(kernels, program, iterations=1, blocks=2, seed=0, change=None):
    """Perform iterations by the kernel, in place. ``change`` may plant something in the table."""
    arena = Arena(program.written.slots)
    table, *more, widths, panel = program.operands(arena.address)
    table = table.clone()
    if change:
        change(table)
    barrier = torch.zeros(1, dtype=torch.int32)
    grid = (len(table), *widths, panel, blocks, iterations, None)
    assert kernels.call("fastgan_mlp_step", table, *more, arena.memory, barrier, *grid, seed=seed) == 0
    arena.take_back()


OPTIMIZERS = {
    "adam": lambda p: fastgan.optim.Adam(p, lr=0.01, weight_decay=0.01, shadow=torch.bfloat16),
    "adamw": lambda p: fastgan.optim.AdamW(
        p, lr=0.01, weight_decay=0.1, ema=fastgan.optim.EMA(0.9, 10.0), shadow=torch.bfloat16
    ),
    "rmsprop": lambda p: fastgan.optim.RMSprop(p, lr=0.003, weight_clip=0.3, shadow=torch.bfloat16),
    "rmsprop whole": lambda p: fastgan.optim.RMSprop(
        p, lr=0.003, centered=True, momentum=0.5, weight_decay=0.01, shadow=torch.bfloat16
    ),
    "sgd": lambda p: fastgan.optim.SGD(p, lr=0.05, shadow=torch.bfloat16),
    "sgd nesterov": lambda p: fastgan.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, shadow=torch.bfloat16),
    "sgd dampened": lambda p: fastgan.optim.SGD(
        p, lr=0.05, momentum=0.9, dampening=0.5, max_norm=0.2, shadow=torch.bfloat16
    ),
    "adam guarded": lambda p: fastgan.optim.Adam(p, lr=0.01, skip_non_finite=True, max_norm=0.5, shadow=torch.bfloat16),
}
POINTS = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
IMAGES = torch.randint(256, (80, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def networks(activation="leaky_relu", widths=(24, 19), norms="g", drop=0.0, first=False, images=False):
    """Odd widths. ``norms``: of whom; the generator's first layer has no bias."""
    torch.manual_seed(3)
    how, (one, two) = {"activation": activation}, widths
    behind = {who: [BatchNorm1dAct(one, momentum=0.3, **how)] if who in norms else [] for who in "gd"}
    own = {who: {"activation": "none"} if who in norms else how for who in "gd"}
    hidden = [LinearAct(5, one, bias=False, **own["g"]), *behind["g"], nn.Linear(one, two)]
    hidden += [nn.BatchNorm1d(two, eps=0.1, affine=False), nn.Tanh(), nn.Dropout(drop)]
    hidden += [LinearAct(two, 6, activation="tanh")]
    critic = [
        LinearAct(6, one, **own["d"]),
        *behind["d"],
        LinearAct(one, two, dropout=drop, dropout_first=first, **how),
    ]
    ends = [nn.Unflatten(1, (1, 2, 3))] if images else []
    return nn.Sequential(*hidden, *ends), nn.Sequential(nn.Flatten(), *critic, nn.Linear(two, 1))


def program(optimizer="sgd", *, data=POINTS, parts=None, **keys):
    generator, discriminator = parts or networks()
    sides = {"generator": generator.parameters(), "discriminator": discriminator.parameters()}
    if optimizer:
        keys["optimizers"] = {side: OPTIMIZERS[optimizer](own) for side, own in sides.items()}
    with strict():
        keys = {"z_dim": 5, "batch_size": 12, "device": "cpu", "precision": "bf16", **keys}
        trainer = fastgan.Trainer(generator=generator, discriminator=discriminator, data=data.clone(), **keys)
    return mlp_step.program(trainer._iterate, trainer.config, trainer.data)


def apart(one, other):
    """How far two tables' slots are from each other: of each, the error's norm to its own."""
    found = []
    for mine, theirs in zip(one.written.slots, other.written.slots, strict=True):
        x, y = mine.double(), theirs.double()
        assert bool((x.isnan() == y.isnan()).all())
        x, y = x.nan_to_num(), y.nan_to_num()
        found.append(float((x - y).norm() / (1e-3 + y.norm())))
    return found


def check(kernels, make, iterations=1, blocks=3, seed=1, most=1e-3):
    """The same iterations by kernel and interpreter; two in bf16 differ where a rounding falls otherwise."""
    ours, theirs = make(), make()
    theirs.run(iterations)
    run(kernels, ours, iterations, blocks, seed)
    errors = apart(ours, theirs)
    assert max(errors) < most, [(at, error) for at, error in enumerate(errors) if error >= most]
    return ours


WIDE = {"batch_size": 66, "updates": "generator_first"}
MANY = {"batch_size": 257, "data": POINTS.repeat(3, 1)}  # the panel's last 64 rows have one that is there
CASES = {
    "fresh": ("none", "minimax", "sgd", {}, {"updates": "fresh"}),
    "shared": ("relu", "non_saturating", "adam", {"norms": "gd"}, {"updates": "shared", "n_critic": 2}),
    "one pass for both": ("leaky_relu", "wasserstein", "rmsprop", {}, {"updates": "generator_first"}),
    "a pass for each": ("tanh", "least_squares", "rmsprop whole", {"norms": "d"}, {"updates": "generator_first"}),
    "dropout": ("sigmoid", "hinge", "adamw", {"drop": 0.3}, {"latent": "uniform"}),
    "dropout first": ("tanh", "minimax", "sgd nesterov", {"drop": 0.5, "first": True}, {"latent": "discrete"}),
    "images": ("relu", "hinge", "sgd dampened", {"images": True}, {"data": IMAGES, "flip": True}),
    "guarded": ("leaky_relu", "least_squares", "adam guarded", {}, {"on_nan": "skip", "updates": "generator_first"}),
    "beyond a tile": ("leaky_relu", "non_saturating", "adam", {"widths": (264, 20)}, WIDE),
    "a panel of its own": ("relu", "hinge", "sgd", {"widths": (2, 3)}, MANY),
    "two samples": ("sigmoid", "wasserstein", "sgd", {"widths": (1, 3), "norms": "gd"}, {"batch_size": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_the_interpreter(kernels, case):
    activation, objective, optimizer, form, keys = CASES[case]

    def make():
        return program(optimizer, parts=networks(activation, **form), objective=objective, **keys)

    check(kernels, make, blocks=1 + len(case) % 4, seed=len(case))


def scheduled():
    schedules = {
        "generator_lr": {"to": 0.0, "steps": 2},
        "discriminator_beta1": {"to": 0.9, "steps": 3, "shape": "cosine"},
    }
    schedules["ema_decay"] = {"to": 0.99, "steps": 4, "begin": 1, "shape": "exponential"}
    how = {"generator_optimizer": {"lr": 0.01}, "ema": {"decay": 0.5, "warmup": 3}, "on_nan": "skip"}
    return program(None, schedules=schedules, **how)


def test_several_iterations_in_a_launch_are_as_many_launches_whatever_the_grid(kernels):
    """Schedules, averages and the guard move on the device; bits do not depend on who computes what, or when."""
    once = check(kernels, scheduled, iterations=2, blocks=4)
    apiece = scheduled()
    for seed in range(2):
        run(kernels, apiece, blocks=1, seed=seed)
    for mine, theirs in zip(once.written.slots, apiece.written.slots, strict=True):
        assert torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))


def test_updates_that_would_spoil_weights_are_skipped(kernels):
    def make():
        made = program("adam guarded", parts=networks(norms="gd"), on_nan="skip")
        for image in made.written.slots:
            if image.shape == POINTS.shape:
                image.fill_(float("inf"))
        return made

    ours = check(kernels, make)
    values = [ours.written.slots[param.value] for param in ours.interpreter.params]
    assert all(bool(value.isfinite().all()) for value in values)
    assert [int(ours.written.slots[param.counters][0]) for param in ours.interpreter.params][-1] == 1


def gradients(kernels, updates):
    """What an iteration of plain descent subtracts: by the kernel, and by autograd in fp64."""
    made = program("sgd", parts=networks("tanh", norms=""), updates=updates)
    params = list(made.interpreter.params)
    before = [made.written.slots[param.value].clone() for param in params]
    run(kernels, made)
    found = [(old - made.written.slots[param.value]) / 0.05 for old, param in zip(before, params, strict=True)]
    generator, discriminator = (network.double() for network in networks("tanh", norms=""))
    slots = made.written.slots
    z, x = (slots[at].double() for at in (made.interpreter.phases[1].out, made.interpreter.phases[0].out))
    assert z.shape[1] == 5 and x.shape[1] == 6
    logits = nn.functional.softplus
    loss = logits(-discriminator(x[:12])).mean() + logits(discriminator(generator(z[:12]).detach())).mean()
    of_d = torch.autograd.grad(loss, list(discriminator.parameters()))
    if updates == "generator_first":
        loss = logits(-discriminator(generator(z[:12]))).mean()
    return found, list(torch.autograd.grad(loss, list(generator.parameters()))) + list(of_d), made


def test_gradients_are_those_of_autograd_in_fp64(kernels):
    found, wanted, made = gradients(kernels, "generator_first")
    still = {phase.bias for phase in made.interpreter.phases if phase.still}
    for at, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        if at in still:
            assert not mine.any()
        else:
            assert float((mine - theirs).norm()) < 0.02 * float(theirs.norm()) + 1e-4, at


def test_a_barrier_that_is_missing_shows(kernels):
    """With all phases in one stage some block reads what another has not yet written."""

    def joined(table):
        table[:, Phase._fields.index("stage")] = 0

    ours, theirs = program(), program()
    theirs.run()
    run(kernels, ours, blocks=4, seed=3, change=joined)
    with pytest.raises(AssertionError):
        assert max(apart(ours, theirs)) < 1e-3


def test_only_what_stands_behind_a_norm_needs_a_panel():
    assert [program(parts=networks(norms=norms)).panel_rows for norms in ("", "gd")] == [12, 12]
    plain = nn.Sequential(LinearAct(5, 3), nn.Linear(3, 6)), nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
    assert program(parts=plain).panel_rows == 0
    assert [mlp_step_launch.shared_bytes(rows) - 48 * 1024 for rows in (0, 257)] == [256 * 64, 320 * 64]


def test_a_table_of_another_form_is_refused(kernels):
    made = program()
    rows, fields = made.written.table.shape
    how = (rows, fields - 1, len(Param._fields), 12, 1, 1, None)
    assert kernels.call("fastgan_mlp_step", *[made.written.table] * 7, *how) != 0
