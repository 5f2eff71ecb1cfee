"""Training by sampling: what is told, which rows go with it, how often; replays and resumed runs; the step's loss."""

import pytest
import torch
from torch import nn

import fastgan
from fastgan.data import Dataset, load
from fastgan.data.table import Column, Table
from fastgan.errors import UserError
from fastgan.presets import from_dict, preset
from fastgan.train import checkpoint
from fastgan.train.capture import strict
from fastgan.train.conditions import Conditions
from fastgan.train.dials import Dials
from fastgan.train.generate import load_discriminator
from fastgan.train.networks import load_network
from fastgan.train.replays import Replays

TABLE = Table(
    (
        Column("n", "float", modes=((0.0, 1.0, 1.0),)),
        Column("a", "category", categories=("x", "y", "z")),
        Column("b", "category", categories=("yes", "no")),
    )
)
ROWS = [[f"{at / 100}", "xxxxxxyyy?"[at % 10].replace("?", "z"), "yes" if at % 4 else "no"] for at in range(200)]
DATA = Dataset("rows", TABLE.encode(ROWS), table=TABLE)
TINY = {"generator.hidden": [8], "discriminator.hidden": [8], "z_dim": 4, "batch_size": 20, "log_every": 1}


def trainer(data=DATA, **keys):
    return fastgan.Trainer("ctgan", data=data, device="cpu", **TINY | {"pac": 2} | keys)


def conditions(batch_size=2000, part=None, **keys):
    from fastgan import models

    config = from_dict({"batch_size": batch_size, "pac": 1, **keys}, preset("ctgan"))
    generator = models.generator("ctgan", 4, DATA.sample_shape, {}, spans=TABLE.spans)
    dials = Dials(config, torch.device("cpu"))
    return Conditions(generator, DATA, config, dials, part or (0, batch_size)), generator, dials


def test_a_column_then_a_category_by_the_logarithm_of_its_count():
    drawing, generator, _ = conditions(20_000)
    counts = [torch.tensor([120.0, 60.0, 20.0]), torch.tensor([150.0, 50.0])]
    wanted = torch.cat([(own + 1).log() / (own + 1).log().sum() / 2 for own in counts])
    drawn = drawing.drawn(0)
    torch.testing.assert_close(drawn.fake.bincount(minlength=5) / 20_000, wanted, atol=0.012, rtol=0)
    torch.testing.assert_close(generator.shares, torch.cat([own / 400 for own in counts]))
    assert torch.equal(drawn.fake.sort()[0], drawn.real.sort()[0]) and not torch.equal(drawn.fake, drawn.real)


def test_real_rows_have_what_was_told_each_as_likely():
    drawing, _, dials = conditions(20_000)
    drawn = drawing.drawn(1)
    onehots = DATA.images[:, 2:]
    assert onehots[drawn.rows].gather(1, drawn.real[:, None]).min() == 1
    of_z = drawn.rows[drawn.real == 2]  # 20 rows have it
    counts = of_z.bincount(minlength=200)
    assert (counts > 0).sum() == 20 and counts[counts > 0].float().std() < 3 * (len(of_z) / 20) ** 0.5
    rows, told = drawing.real(1)
    assert torch.equal(rows, DATA.images[drawn.rows]) and torch.equal(told.argmax(1), drawn.real)
    again, other = drawing.drawn(1), drawing.drawn(0)
    assert torch.equal(again.rows, drawn.rows) and not torch.equal(other.rows, drawn.rows)
    dials.set(1)
    assert not torch.equal(drawing.drawn(1).rows, drawn.rows)


def test_each_process_has_its_part():
    whole, halves = conditions(20)[0], [conditions(20, (first, 10))[0] for first in (0, 10)]
    for name in ("real", "fake"):
        own = [half.real(0) if name == "real" else (half.beside(torch.zeros(10, 4), 0),) for half in halves]
        both = whole.real(0) if name == "real" else (whole.beside(torch.zeros(20, 4), 0),)
        for parts, expected in zip(zip(*own, strict=True), both, strict=True):
            assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("updates", ["fresh", "shared", "generator_first"])
def test_the_generator_minimises_its_own_loss_too(updates):
    """SGD's step is the gradient of the adversarial loss and the cross-entropy together."""
    critic = nn.Sequential(nn.Linear(2 * (DATA.sample_shape[0] + 5), 1), nn.Flatten(0))
    run = trainer(discriminator=critic, updates=updates, penalty="none", noise=0.0)
    run.players.generator_optimizer.step = lambda: None  # the gradients stay to be looked at
    run._iterate._to_generator.clear = lambda: None
    weights = list(run.generator.parameters())
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    stream = torch.get_rng_state()
    run._iterate(run._iterate.pattern(0))
    found = [parameter.grad.clone() for parameter in weights]
    run.dials.set(0)
    after = [parameter.detach().clone() for parameter in critic.parameters()]
    for parameter, value in zip(critic.parameters(), before if updates == "generator_first" else after, strict=True):
        parameter.data.copy_(value)
    torch.set_rng_state(stream)
    twin = trainer(discriminator=critic, updates=updates, penalty="none")
    twin.generator.load_state_dict({**run.generator.state_dict()})
    if updates == "fresh":
        twin.generator(twin._draws.z(0))
    fake, missed = twin.generator(twin._draws.z(1 if updates == "fresh" else 0))
    loss = missed - critic(fake.unflatten(0, (10, 2)).flatten(1)).mean()
    wanted = torch.autograd.grad(loss, list(twin.generator.parameters()))
    torch.testing.assert_close(found, list(wanted))
    assert missed > 0.3


def test_a_graph_replays_it_and_a_run_is_resumed_exactly(tmp_path):
    with strict():
        replayed, eager = trainer(noise=0.1), trainer(noise=0.1, graph=False)
        assert isinstance(replayed._run, Replays)
        for run in (replayed, eager):
            run.fit(5, progress=False)
        torch.testing.assert_close(replayed.generator.state_dict(), eager.generator.state_dict(), rtol=0, atol=0)
    whole = trainer().fit(6, progress=False)
    half = trainer(out=tmp_path).fit(3, progress=False)
    again = trainer(out=tmp_path)
    again.resume(checkpoint.load(checkpoint.whole(tmp_path / "checkpoints")[-1]))
    again.fit(6, progress=False)
    torch.testing.assert_close(whole.generator.state_dict(), again.generator.state_dict(), rtol=0, atol=0)
    assert [row["loss_g"] for row in again.history[3:]] == [row["loss_g"] for row in whole.history[3:]]
    assert half.history[0]["diversity"] > 0
    assert torch.equal(whole.sample(9, seed=4), again.sample(9, seed=4))
    for side in ("generator", "discriminator"):
        read = load_network(tmp_path, side).state_dict()
        torch.testing.assert_close(read, getattr(again, side).state_dict(), rtol=0, atol=0)
    assert load_discriminator(tmp_path, "cpu") is None  # it judges packs, with their conditions


def test_tables_without_categories_and_data_elsewhere():
    numbers = Table(TABLE.columns[:1])
    plain = Dataset("numbers", numbers.encode([row[:1] for row in ROWS]), table=numbers)
    run = trainer(plain).fit(2, progress=False)
    assert run.generator.conditions == 0 and run.sample(3).shape == (3, 2)
    assert trainer(**{"generator.conditional": False}).fit(1, progress=False).sample(3).shape == (3, 7)
    with pytest.raises(UserError, match=r"resident=auto, or generator\.conditional=false"):
        trainer(resident="never")
    with pytest.raises(UserError, match="rows of a table"):
        fastgan.Trainer("ctgan", data="ring8", **TINY)
    own = nn.Linear(4, 7)
    own.register_forward_hook(lambda *parts: (parts[-1], parts[-1]))
    with pytest.raises(UserError, match="returns more than samples"):
        fastgan.Trainer(generator=own, discriminator=nn.Linear(7, 1), data=DATA, z_dim=4, batch_size=20)
    assert load("people").table.columns[0].kind == "integer"
