"""The race of many small GANs: every contender trains each of its members."""

import torch
from torch.nn import functional as F

from fastgan.benchmarks import ensemble
from fastgan.benchmarks.ensemble import Stacks


def test_torch_funcs_stacks_are_the_members_alone():
    torch.manual_seed(0)
    stacks = Stacks(2, torch.device("cpu"), None)
    base, params, _ = stacks.networks[1]
    own = {name: value[1].detach().clone().requires_grad_() for name, value in params.items()}
    _, generators, states = stacks.networks[0]
    with torch.no_grad():
        alone = {name: value[1].clone() for name, value in {**generators, **states}.items()}
        fake = torch.func.functional_call(stacks.networks[0][0], alone, (stacks.z[0, 1],))
    optimizer = torch.optim.Adam(own.values(), **ensemble.ADAM)
    real, made = (torch.func.functional_call(base, own, (x,)) for x in (stacks.real[1], fake))
    (F.softplus(-real).mean() + F.softplus(made).mean()).backward()
    optimizer.step()
    means = states["3.running_mean"].clone()
    stacks.step()
    for name, value in own.items():
        torch.testing.assert_close(params[name][1], value)
    assert not torch.equal(states["3.running_mean"], means)


def test_the_race_runs_where_there_is_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ensemble.main(["--members", "2", "--iterations", "1", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nothing captured" in lines[0] and sum(line.startswith("| fastgan.Ensemble, graphs") for line in lines) == 1
