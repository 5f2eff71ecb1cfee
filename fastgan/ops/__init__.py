"""Functional ops, one file each: reference, registration, autograd and dispatch. Differentiable as often as asked."""

from fastgan.ops import chain as chain
from fastgan.ops.batch_norm_act import batch_norm_act as batch_norm_act
from fastgan.ops.bce import bce as bce
from fastgan.ops.bce import bce_with_logits as bce_with_logits
from fastgan.ops.concat_linear import Embedded as Embedded
from fastgan.ops.concat_linear import concat_linear_act as concat_linear_act
from fastgan.ops.conv import conv1d_act as conv1d_act
from fastgan.ops.conv import conv2d_act as conv2d_act
from fastgan.ops.conv import conv_transpose1d_act as conv_transpose1d_act
from fastgan.ops.conv import conv_transpose2d_act as conv_transpose2d_act
from fastgan.ops.diff_augment import diff_augment as diff_augment
from fastgan.ops.gan_loss import gan_loss as gan_loss
from fastgan.ops.halves import halves as halves
from fastgan.ops.interpolate import interpolate as interpolate
from fastgan.ops.latent import labels as labels
from fastgan.ops.latent import latent as latent
from fastgan.ops.linear import linear_act as linear_act
from fastgan.ops.maxout import maxout as maxout
from fastgan.ops.norm_penalty import norm_penalty as norm_penalty
from fastgan.ops.permutation import permuted as permuted
from fastgan.ops.real_batch import chosen as chosen
from fastgan.ops.real_batch import real_batch as real_batch
from fastgan.ops.tick import scheduled as scheduled
from fastgan.ops.tick import tick as tick
from fastgan.ops.unit_gradient import unit_gradient as unit_gradient
