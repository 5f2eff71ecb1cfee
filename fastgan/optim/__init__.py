"""torch.optim's optimisers in one launch a step, with averages of the weights, clipping, a guard and shadow copies."""

from fastgan.optim.adam import Adam as Adam
from fastgan.optim.adam import AdamW as AdamW
from fastgan.optim.ema import EMA as EMA
from fastgan.optim.ema import Averages as Averages
from fastgan.optim.rmsprop import RMSprop as RMSprop
from fastgan.optim.sgd import SGD as SGD
