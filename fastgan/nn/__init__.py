"""Layers: subclasses of torch.nn's own, with the same parameters and the same state_dict."""

from fastgan.nn.linear import LinearAct

__all__ = ["LinearAct"]
