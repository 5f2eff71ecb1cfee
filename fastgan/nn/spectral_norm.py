"""Spectral norm: torch.nn.utils.parametrizations' own, of which nothing has to be written again.

Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks": a weight is divided by an estimate of
its largest singular value, which one power iteration for each forward pass in training keeps up to date.

That a CUDA graph can hold it is tested: nothing in it reads a value back, goes by one, or crosses devices, and its
vectors are moved in place. A layer's forward pass takes 12 launches (4 products, 2 norms, 2 clamps, 2 divisions and 2
copies of vectors), 1 for the weight's division, and for a transposed convolution 1 for a transposed copy. Of the 13 all
but the products could be shared by the layers of a network through ``torch._foreach`` functions: with 6 layers, about
35 launches instead of 78, by a parametrization that knows of the other layers. What that would save is not measured.

A ``Chain`` forms each weight once for each pass, so that real and fake samples through ``Chain.fold`` share one
iteration. Under autocast on a GPU the products are formed in 16 bits.
"""

from torch.nn.utils.parametrizations import spectral_norm as spectral_norm
