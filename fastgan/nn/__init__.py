"""Layers: subclasses of torch.nn's own, with the same parameters and the same state_dict."""

from fastgan.nn.batch_norm import BatchNorm1dAct, BatchNorm2dAct
from fastgan.nn.batch_norm_stack import BatchNorm1dActStack
from fastgan.nn.chain import Chain
from fastgan.nn.concat_linear import ConcatLinearAct
from fastgan.nn.conditional_batch_norm import ConditionalBatchNorm2dAct
from fastgan.nn.conv import Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct
from fastgan.nn.diff_augment import DiffAugment
from fastgan.nn.instance_norm import InstanceNorm1dAct, InstanceNorm2dAct
from fastgan.nn.linear import LinearAct
from fastgan.nn.linear_act_stack import LinearActStack
from fastgan.nn.loss import BCELoss, BCEWithLogitsLoss, GANLoss
from fastgan.nn.maxout import Maxout
from fastgan.nn.maxout_stack import MaxoutStack
from fastgan.nn.minibatch_std import MinibatchStdLayer
from fastgan.nn.sample_by_sample import sample_by_sample
from fastgan.nn.spectral_norm import spectral_norm
from fastgan.ops.concat_linear import Embedded

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1dAct",
    "BatchNorm1dActStack",
    "BatchNorm2dAct",
    "Chain",
    "ConcatLinearAct",
    "ConditionalBatchNorm2dAct",
    "Conv1dAct",
    "Conv2dAct",
    "ConvTranspose1dAct",
    "ConvTranspose2dAct",
    "DiffAugment",
    "Embedded",
    "GANLoss",
    "InstanceNorm1dAct",
    "InstanceNorm2dAct",
    "LinearAct",
    "LinearActStack",
    "Maxout",
    "MaxoutStack",
    "MinibatchStdLayer",
    "sample_by_sample",
    "spectral_norm",
]
