"""StyleGAN's operations under the names and arguments that its networks call: one import line, and they run.

    from fastgan.stylegan import bias_act, conv2d_resample, filtered_lrelu, fma, upfirdn2d

stands for ``from torch_utils.ops import ...``; ``conv2d_gradfix`` is there too. Beside these modules:
``modulated_conv2d`` (StyleGAN2), ``normalized_modulated_conv2d`` (StyleGAN3), ``minibatch_std`` and
``MinibatchStdLayer``.
"""

from fastgan.nn.minibatch_std import MinibatchStdLayer
from fastgan.ops.minibatch_std import minibatch_std
from fastgan.stylegan import bias_act, conv2d_gradfix, conv2d_resample, filtered_lrelu, fma, upfirdn2d
from fastgan.stylegan.modulated import modulated_conv2d, normalized_modulated_conv2d

__all__ = [
    "MinibatchStdLayer",
    "bias_act",
    "conv2d_gradfix",
    "conv2d_resample",
    "filtered_lrelu",
    "fma",
    "minibatch_std",
    "modulated_conv2d",
    "normalized_modulated_conv2d",
    "upfirdn2d",
]
