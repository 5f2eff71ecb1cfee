"""Networks in stacks: each member computes what its own network does, and that network's weights are the stack's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan import models
from fastgan.errors import UserError
from fastgan.models.stack import Stack

OPTIONS = [{}, {"activation": "relu", "output": "none"}, {"activation": "none", "norm": False}, {"activation": "tanh"}]


def networks(side: str, **options: object) -> list[nn.Module]:
    if side == "generator":
        return [models.generator("mlp", 4, (1, 3, 2), {"hidden": [8, 7, 9], **options}) for _ in range(3)]
    return [models.discriminator("mlp", (1, 3, 2), {"hidden": [8, 7], **options}) for _ in range(3)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("side", ["generator", "discriminator"])
def test_members_are_their_networks(side: str, options: dict[str, object]) -> None:
    given = {key: value for key, value in options.items() if side == "generator" or key == "activation"}
    own = networks(side, **given)
    alone = networks(side, **given)
    for network, twin in zip(own, alone, strict=True):
        twin.load_state_dict(network.state_dict())
    stack = Stack(own)
    x = torch.randn(3, 6, 4) if side == "generator" else torch.randn(3, 6, 1, 3, 2)
    expected = [twin(batch) for twin, batch in zip(alone, x, strict=True)]
    torch.testing.assert_close(stack(x), torch.stack(expected))
    assert stack(x).shape == ((3, 6, 1, 3, 2) if side == "generator" else (3, 6))
    twice = [twin(batch) for twin, batch in zip(alone, x, strict=True)]
    sum(output.sum() for output in twice).backward()  # type: ignore[union-attr]
    gradients = torch.autograd.grad(stack(x).sum(), [whole for whole, _ in stack.shared()])
    for (_, parts), gradient in zip(stack.shared(), gradients, strict=True):
        assert [part.shape for part in parts] == [gradient.shape[1:]] * 3
    for at, (network, twin) in enumerate(zip(own, alone, strict=True)):
        mine = [gradient[at] for gradient in gradients]
        torch.testing.assert_close(mine, [parameter.grad for parameter in twin.parameters()], rtol=1e-4, atol=1e-5)
        buffers = dict(twin.named_buffers())
        moved = 3 if side == "generator" else 0
        assert all(int(b) == moved for name, b in network.named_buffers() if name.endswith("tracked"))
        for name, buffer in network.named_buffers():  # the stack ran once more
            if name.endswith("mean"):
                assert not torch.equal(buffer, torch.zeros_like(buffer)) and buffers[name].shape == buffer.shape


def test_weights_are_views_both_ways() -> None:
    own = networks("generator")
    stack = Stack(own)
    z = torch.randn(3, 5, 4)
    stack(z)
    for network in (*own, stack):
        network.eval()
    expected = [network(batch) for network, batch in zip(own, z, strict=True)]
    torch.testing.assert_close(stack(z), torch.stack(expected))
    with torch.no_grad():
        for parameter in own[1].parameters():
            parameter.zero_()
    assert torch.equal(stack(z)[1], torch.zeros(5, 1, 3, 2)) and not torch.equal(stack(z)[0], stack(z)[1])
    own[0].load_state_dict(own[2].state_dict())
    torch.testing.assert_close(stack(z[2:].expand(3, 5, 4))[0], stack(z)[2])


def test_what_cannot_be_stacked() -> None:
    with pytest.raises(UserError, match="family mlp"):
        Stack([models.generator("dcgan", 4, (1, 32, 32), {})])
    with pytest.raises(UserError, match="one size"):
        Stack([models.discriminator("mlp", (6,), {"hidden": [size]}) for size in (4, 5)])
    with pytest.raises(UserError, match="one depth"):
        Stack([models.discriminator("mlp", (6,), {"hidden": hidden}) for hidden in ([4], [4, 4])])
    with pytest.raises(UserError, match="one form"):
        Stack([models.generator("mlp", 4, shape, {}) for shape in ((6,), (5,))])
