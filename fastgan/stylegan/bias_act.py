"""``bias_act.bias_act`` and ``bias_act.activation_funcs``, as StyleGAN's networks use them."""

from __future__ import annotations

from torch import Tensor

from fastgan.ops.gained_act import ACTIVATIONS, gained_act
from fastgan.stylegan.implementation import implementation

activation_funcs = ACTIVATIONS  # name -> .def_alpha, .def_gain


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """Return clamp(gain * act(x + b)): ``fastgan.ops.gained_act``."""
    with implementation(impl):
        return gained_act(x, b, dim, act, alpha, gain, clamp)
