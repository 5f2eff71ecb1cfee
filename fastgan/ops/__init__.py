"""Functional ops, one file each: reference, registration, autograd and dispatch. Differentiable as often as asked."""

from fastgan.ops import chain as chain
from fastgan.ops.concat_linear import Embedded as Embedded
from fastgan.ops.concat_linear import concat_linear_act as concat_linear_act
from fastgan.ops.linear import linear_act as linear_act
from fastgan.ops.maxout import maxout as maxout
