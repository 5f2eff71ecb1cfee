"""Which members of a Chain go together: a layer, the norm, activation and dropout behind it, an up-sampling before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastgan.nn.batch_norm import BatchNorm1dAct, BatchNorm2dAct
from fastgan.nn.conv import Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct
from fastgan.nn.instance_norm import InstanceNorm1dAct, InstanceNorm2dAct
from fastgan.nn.linear import LinearAct
from fastgan.nn.synced_batch_norm import SyncedBatchNorm1d, SyncedBatchNorm2d
from fastgan.ops import activation as act
from fastgan.ops.chain_layer import Layer
from fastgan.ops.conv_compute import NOTHING
from fastgan.ops.conv_form import Form

ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
LINEAR = (nn.Linear, LinearAct)
UPSAMPLES = (nn.Upsample, nn.UpsamplingNearest2d)
CONV = {  # and the dimensions of what they take
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d, Conv1dAct, ConvTranspose1dAct), 3),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d, Conv2dAct, ConvTranspose2dAct), 4),
}
INSTANCE_NORMS: dict[type, tuple[int, ...]] = {
    **dict.fromkeys((nn.InstanceNorm1d, InstanceNorm1dAct), (3,)),
    **dict.fromkeys((nn.InstanceNorm2d, InstanceNorm2dAct), (4,)),
}
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d | nn.InstanceNorm2d
NORMS: dict[type, tuple[int, ...]] = {
    **INSTANCE_NORMS,
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    BatchNorm1dAct: (2, 3),
    BatchNorm2dAct: (4,),
    SyncedBatchNorm1d: (2, 3),
    SyncedBatchNorm2d: (4,),
}
FORMING = (WeightNorm, SpectralNorm)  # hooks that set a weight before each call, and do nothing else


class Fused(NamedTuple):
    """A layer, and the members around it that its function takes in."""

    core: nn.Module  # with weight and bias
    norm: Norm | None
    layer: Layer  # but for its norm, which is another in each call
    members: tuple[nn.Module, ...]
    dims: int  # of what it takes

    @property
    def by_instance(self) -> bool:
        """Whether each sample is normalised by itself."""
        return type(self.norm) in INSTANCE_NORMS

    @property
    def formed(self) -> bool:
        """Whether the weight is formed anew at each use."""
        return bool(self.core._forward_pre_hooks) or "parametrizations" in self.core._modules

    def form(self, *input: Tensor) -> None:
        """Have the hooks of a weight or spectral norm set the weight, as calling the layer on the input would."""
        for hook in self.core._forward_pre_hooks.values():
            hook(self.core, input)

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias; weights of a signal as those of an image of one row."""
        weight, bias = self.core.weight, self.core.bias
        assert isinstance(weight, Tensor)
        return weight.unsqueeze(2) if self.dims == 3 else weight, bias  # type: ignore[return-value]

    @property
    def keeps_result(self) -> bool:
        """Whether backward wants its result where that of torch.nn's members would not: nobody may overwrite it."""
        last = self.members[-1]
        dropped = self.layer.dropout > 0 or isinstance(last, nn.Dropout)
        leaky = self.layer.activation == "leaky_relu" and not overwrites(last)
        return self.norm is None and (dropped or leaky)


def plan(members: list[nn.Module]) -> Iterator[nn.Module | list[Fused]]:
    """Yield runs of layers to fuse, and between them the members that are not fused. Empties the list."""
    run: list[Fused] = []
    fresh = False  # whether what the next member takes was made for it alone
    while members:
        fused = take(members, fresh)
        if run and (fused is None or not _follows(fused, run)):
            yield run
            run = []
        if fused is not None:
            run.append(fused)
            fresh = False
        else:
            fresh = kind_of(members[0]) in NORMS and plain(members[0])
            yield members.pop(0)
    if run:
        yield run


def _follows(fused: Fused, run: list[Fused]) -> bool:
    """Whether a layer can be of the run: nothing is ahead of it, and all statistics are of batches or of instances."""
    told = {each.by_instance for each in (fused, *run) if each.norm is not None}
    return fused.dims == run[-1].dims and fused.layer.before == NOTHING and len(told) < 2


def take(members: list[nn.Module], fresh: bool = False) -> Fused | None:
    """Take a layer and what can be fused around it off the front of the list; ``fresh``: nobody else has its input."""
    before = list(members)
    ahead = _take_ahead(members, fresh)
    scale = _take_upsample(members)
    core = members[0]
    kind = kind_of(core)
    dims = 2 if kind in LINEAR else CONV.get(kind, 0)
    form = _form(core, scale) if dims > 2 else None
    if not dims or not plain(core, FORMING) or (dims > 2 and form is None) or (scale > 1 and dims != 4):
        members[:] = before
        return None
    told = vars(core)  # where to look costs less than asking a module for what it may lack
    activation, slope = act.check(told.get("activation", "none")), told.get("negative_slope", 0.0)
    if act.saves_pre_activation(activation, slope):
        members[:] = before
        return None  # it would have to keep its pre-activation
    members.pop(0)
    norm, dropped, first = None, 0.0, False
    own = told.get("dropout", 0.0)
    if activation != "none" or own:
        dropped, first = own if core.training else 0.0, told.get("dropout_first", False)
    elif norm := _take_norm(members, dims):
        activation, slope = _activation_of(norm) or _take_activation(members)
    else:
        dropped = _take_dropout(members) if dims == 2 else 0.0
        first = dropped > 0
        activation, slope = _take_activation(members)
    if norm is None and not dropped and dims == 2:
        dropped = _take_dropout(members)
    layer = Layer(activation, slope, dropout=dropped, dropout_first=first, form=form, before=ahead)
    return Fused(core, norm, layer, tuple(before[: len(before) - len(members)]), dims)


def kind_of(member: nn.Module) -> type[nn.Module]:
    """Return a member's class; of one that is converted, or its weights parametrized (spectral norm), what it was."""
    kind = type(member)
    kind = kind.__bases__[0] if "parametrizations" in member._modules else kind
    return getattr(kind, "converted_from", kind)


def overwrites(member: nn.Module) -> bool:
    """Whether a member works in place."""
    return bool(getattr(member, "inplace", False))


def plain(member: nn.Module, but: tuple[type, ...] = ()) -> bool:
    """Whether calling the member is running its class's own forward, and nothing beside ``but`` such hooks before."""
    if member._forward_pre_hooks and any(type(hook) not in but for hook in member._forward_pre_hooks.values()):
        return False
    return "forward" not in vars(member) and not (
        member._forward_hooks or member._backward_hooks or member._backward_pre_hooks
    )


def _form(conv: nn.Module, scale: int) -> Form | None:
    """Return what a convolution is told; None where the kernels do not take it."""
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d))
    if conv.groups != 1 or conv.padding_mode != "zeros":
        return None
    if vars(conv).get("pre_activation", "none") != "none":
        return None
    own = vars(conv).get("upsample", 1)
    if own > 1 and scale > 1:
        return None
    padding = _padding(conv)
    if padding is None:
        return None

    def pair(values: tuple[int, ...], one: int) -> tuple[int, int]:
        return (values[0], values[1]) if len(values) == 2 else (one, values[0])

    transposed = isinstance(conv, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    spare = pair(conv.output_padding, 0)
    steps = pair(conv.stride, 1), pair(padding, 0), pair(conv.dilation, 1)
    form = Form(*steps, 1, transposed, spare, max(own, scale))
    return form if form.sound and form.mapped else None


def _padding(conv: nn.Module) -> tuple[int, ...] | None:
    """Return a convolution's padding in numbers, where it is the same on both sides."""
    padding = conv.padding
    if padding == "valid":
        return tuple(0 for _ in conv.kernel_size)  # type: ignore[union-attr]
    if padding == "same":
        spread = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]  # type: ignore[arg-type]
        return None if any(wide % 2 for wide in spread) else tuple(wide // 2 for wide in spread)
    return padding  # type: ignore[return-value]


def _take_ahead(members: list[nn.Module], fresh: bool) -> tuple[str, float]:
    """Take an activation in front of a convolution that nobody sees change its input."""
    scaled = len(members) > 2 and type(members[1]) in UPSAMPLES
    conv = members[2 if scaled else 1] if len(members) > 1 else None
    if conv is None or kind_of(conv) not in CONV or (overwrites(members[0]) and not fresh):
        return NOTHING
    return _take_activation(members)


def _take_upsample(members: list[nn.Module]) -> int:
    """Take a nearest-neighbour up-sampling that a convolution follows; return its whole-numbered scale, else 1."""
    member: Any = members[0]
    if type(member) not in UPSAMPLES or len(members) < 2 or not plain(member):
        return 1
    factor = member.scale_factor
    scales = factor if isinstance(factor, tuple) else (factor, factor)
    if member.mode != "nearest" or member.size is not None or None in scales or len(set(scales)) > 1:
        return 1
    scale = float(scales[0])
    if scale != int(scale) or not 2 <= scale <= 4 or getattr(members[1], "stride", None) != (1, 1):
        return 1
    if kind_of(members[1]) not in (nn.Conv2d, Conv2dAct):
        return 1
    members.pop(0)
    return int(scale)


def _take_norm(members: list[nn.Module], dims: int) -> Norm | None:
    norm = members[0] if members else None
    if norm is None or dims not in NORMS.get(type(norm), ()) or not plain(norm):
        return None
    assert isinstance(norm, Norm)
    if type(norm) in INSTANCE_NORMS and (norm.track_running_stats or norm.running_mean is not None):
        return None
    vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if norm.eps <= 0 or any(vector is not None and not vector.is_contiguous() for vector in vectors):
        return None
    members.pop(0)
    return norm


def _activation_of(norm: Norm) -> tuple[str, float] | None:
    """Return the activation that a norm of ours has in it."""
    name = vars(norm).get("activation", "none")
    return None if name == "none" else (name, norm.negative_slope)  # type: ignore[return-value]


def _take_activation(members: list[nn.Module]) -> tuple[str, float]:
    member = members[0] if members else None
    name = ACTIVATIONS.get(type(member))
    if member is None or name is None or not plain(member):
        return "none", 0.0
    slope = member.negative_slope if isinstance(member, nn.LeakyReLU) else 0.0
    if slope < 0:
        return "none", 0.0
    members.pop(0)
    return name, slope


def _take_dropout(members: list[nn.Module]) -> float:
    member = members[0] if members else None
    if type(member) is not nn.Dropout or not plain(member):
        return 0.0
    members.pop(0)
    return member.p if member.training else 0.0
