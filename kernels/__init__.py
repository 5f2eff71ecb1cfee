"""Triton kernels: tensors in, tensors out; no autograd, no nn. Each file imports Triton: import it where it is used."""
