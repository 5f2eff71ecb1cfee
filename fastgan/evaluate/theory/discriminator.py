"""What a discriminator is at its optimum, and what the value function is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.evaluate.theory.densities import LINE, Mixture, integral, jensen_shannon_by_entropy, normal
from fastgan.nn import Chain, LinearAct
from fastgan.objectives import discriminator_loss

FLOOR = -2 * math.log(2)
DATA = Mixture((-2.0, 1.5), (0.6, 0.9), (0.4, 0.6))
GENERATED = normal(0.5, 1.6)
PAIRS = (
    (DATA, GENERATED),
    (DATA, Mixture((-2.0, 1.5), (0.6, 0.9), (0.6, 0.4))),
    (normal(), normal(1.0)),
    (normal(), normal(4.0)),
    (normal(), normal(0.0, 3.0)),
)


def optimal_discriminator(seed: int = 0) -> Claim:
    """Train a network on equally likely points of two densities; compare it with p_data / (p_data + p_g)."""
    logits = trained(DATA, GENERATED, seed)
    data, generated = DATA.density(LINE), GENERATED.density(LINE)
    both = (data + generated) / 2
    support = both > 5e-3  # 99.5% of all samples lie there
    error = (torch.sigmoid(logits(LINE)) - data / (data + generated)).abs()
    theory = FLOOR + 2 * divergence(DATA, GENERATED)
    return Claim(
        "optimal-discriminator",
        "For a fixed generator the best discriminator is p_data / (p_data + p_g), and training finds it.",
        "Goodfellow et al., 2014, proposition 1",
        (
            Measured("largest |D - D*| where 99.5% of the samples lie", float(error[support].max()), 0, 0.02),
            Measured("mean |D - D*| of samples", float(integral(error * both)), 0, 0.002),
            Measured("V(D, G) of the trained D", float(value(DATA, GENERATED, logits(LINE))), theory, 5e-4),
        ),
        partial(_draw_discriminator, logits, error, support),
        panels=2,
    )


def value_is_jensen_shannon(seed: int = 0) -> Claim:
    """V(D*, G) by quadrature against -2 log 2 + 2 JSD, where entropies lead to JSD without any discriminator."""
    gaps = [float(value(p, q)) - (FLOOR + 2 * divergence(p, q)) for p, q in PAIRS]
    gains = [float(value(p, q, logits) - value(p, q)) for p, q in PAIRS for logits in bent(p, q, seed)]
    near = 0.01
    excess = float(value(normal(), normal(near))) - FLOOR
    return Claim(
        "value-is-jensen-shannon",
        "At the best D the value function is -2 log 2 + 2 JSD(p_data, p_g): at least -2 log 2, and that only where "
        "the generator has become the data.",
        "Goodfellow et al., 2014, theorem 1 and eq. 5-6",
        (
            Measured(f"largest |V(D*, G) + 2 log 2 - 2 JSD| of {len(PAIRS)} pairs", max(map(abs, gaps)), 0, 1e-9),
            Measured("V(D*, G) of equal densities", float(value(DATA, DATA)), FLOOR, 1e-12),
            Measured(
                "least V(D*, G) of unequal ones", min(float(value(*pair)) for pair in PAIRS), FLOOR, 0, "at_least"
            ),
            Measured("(V + 2 log 2) / (shift² / 4) of N(0, 1), shift 0.01", excess / (near**2 / 4), 1, 1e-3),
            Measured("best gain from bending D*", max(gains), 0, 0, "at_most"),
        ),
        _draw_value,
        panels=2,
    )


def error_of_the_value(seed: int = 0) -> Claim:
    """Estimate V(D*, G) from n samples a side, again and again: the error's root mean square against n."""
    p, q, repeats = normal(), normal(1.5), 500
    counts = [2**k for k in range(4, 14)]
    generator = torch.Generator().manual_seed(seed)
    errors = [float((estimates(p, q, repeats, n, generator) - value(p, q)).square().mean().sqrt()) for n in counts]
    spread = math.sqrt(sum(variances(p, q)))
    slope = fitted_slope(counts, errors)
    ratios = torch.tensor([error * math.sqrt(n) / spread for n, error in zip(counts, errors, strict=True)])
    return Claim(
        "error-of-the-value",
        "Estimated from n samples a side, V errs by about 1 / sqrt(n): one digit more takes a hundred times the batch.",
        "Goodfellow et al., 2014, algorithm 1; the central limit theorem",
        (
            Measured("slope of log error over log n", slope, -0.5, 0.03),
            Measured("error / sqrt((var log D + var log(1 - D)) / n)", float(ratios.log().mean().exp()), 1, 0.05),
        ),
        partial(_draw_error, counts, errors, spread, slope),
    )


def trained(p: Mixture, q: Mixture, seed: int, points: int = 4000) -> Callable[[Tensor], Tensor]:
    """Train a small network to tell p from q by the minimax loss: its logits as a function of x ``(n,)``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Chain(LinearAct(1, 32, activation="tanh"), LinearAct(32, 1, activation="none")).double()
    real, fake = p.quantiles(points)[:, None], q.quantiles(points)[:, None]
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=400, history_size=30, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        loss = discriminator_loss("minimax", network(real), network(fake))
        loss.backward()
        return loss.item()

    optimizer.step(loss)
    network.requires_grad_(False)
    return lambda x: network(x[:, None]).squeeze(1)


def value(p: Mixture, q: Mixture, logits: Tensor | None = None) -> Tensor:
    """V(D, G) = E_p log D + E_q log(1 - D) by quadrature, of D's ``logits`` on LINE; without any, those of D*."""
    log_p, log_q = p.log_density(LINE), q.log_density(LINE)
    if logits is None:
        logits = log_p - log_q
    return -integral(log_p.exp() * F.softplus(-logits) + log_q.exp() * F.softplus(logits))


def divergence(p: Mixture, q: Mixture) -> float:
    """JSD(p, q), with no discriminator in it."""
    return float(jensen_shannon_by_entropy(p.density(LINE), q.density(LINE)))


def bent(p: Mixture, q: Mixture, seed: int, count: int = 20) -> list[Tensor]:
    """Logits of D* with a random wave on top."""
    generator = torch.Generator().manual_seed(seed)
    size, pace, phase = torch.rand(3, count, 1, dtype=torch.float64, generator=generator)
    return list(p.log_density(LINE) - q.log_density(LINE) + size * torch.sin(3 * pace * LINE + 6 * phase))


def estimates(p: Mixture, q: Mixture, repeats: int, n: int, generator: torch.Generator) -> Tensor:
    """``repeats`` estimates of V(D*, G), each from n real and n generated samples."""
    real, fake = (density.sample(repeats, n, generator=generator) for density in (p, q))
    logits = (p.log_density(x) - q.log_density(x) for x in (real, fake))
    return torch.stack([-discriminator_loss("minimax", *pair) for pair in zip(*logits, strict=True)])


def variances(p: Mixture, q: Mixture) -> tuple[float, float]:
    """Variance of log D*(x) under p, and of log(1 - D*(x)) under q."""
    log_p, log_q = p.log_density(LINE), q.log_density(LINE)
    seen = ((log_p.exp(), F.logsigmoid(log_p - log_q)), (log_q.exp(), F.logsigmoid(log_q - log_p)))
    first, second = (float(integral(w * log.square()) - integral(w * log).square()) for w, log in seen)
    return first, second


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms of both."""
    a, b = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    a = a - a.mean()
    return float((a * b).sum() / a.square().sum())


def _draw_discriminator(
    logits: Callable[[Tensor], Tensor], error: Tensor, support: Tensor, axes: Sequence[Any]
) -> None:
    shown = LINE.abs() < 6
    x, data, generated = LINE[shown], DATA.density(LINE[shown]), GENERATED.density(LINE[shown])
    axes[0].fill_between(x, data, color="tab:blue", alpha=0.25, linewidth=0, label="p_data")
    axes[0].fill_between(x, generated, color="tab:orange", alpha=0.25, linewidth=0, label="p_g")
    axes[0].plot(x, torch.sigmoid(logits(x)), color="tab:green", linewidth=2.4, label="D, trained")
    axes[0].plot(x, data / (data + generated), "k--", linewidth=1, label="p_data / (p_data + p_g)")
    axes[0].set(title="a trained discriminator", xlabel="x", ylim=(0, 1.3), yticks=(0, 0.5, 1))
    axes[0].legend(loc="upper right", ncols=2)
    axes[1].semilogy(x, error[shown], color="tab:green")
    outside = ~support[shown]
    axes[1].fill_between(x, 0, 1, where=outside, color="0.92", transform=axes[1].get_xaxis_transform(), linewidth=0)
    axes[1].set(title="its error (grey: hardly a sample there)", xlabel="x", ylabel="|D - D*|", ylim=(1e-6, 1))


def _draw_value(axes: Sequence[Any]) -> None:
    means, stds = torch.linspace(-5, 5, 81).tolist(), torch.logspace(-0.7, 0.7, 81).tolist()
    for axis, at, generated in (
        (axes[0], means, [normal(mean) for mean in means]),
        (axes[1], stds, [normal(0, std) for std in stds]),
    ):
        axis.plot(at, [value(normal(), q) for q in generated], color="tab:green", linewidth=2.4, label="V(D*, G)")
        theory = [FLOOR + 2 * divergence(normal(), q) for q in generated]
        axis.plot(at, theory, "k--", linewidth=1, label="-2 log 2 + 2 JSD")
        for level, text in ((FLOOR, "-2 log 2: p_g is p_data"), (0, "0: nothing in common")):
            axis.axhline(level, color="0.6", linewidth=0.8, linestyle=":")
            axis.annotate(text, (0.02, level), xycoords=("axes fraction", "data"), va="bottom", color="0.4", fontsize=8)
        axis.set(ylim=(FLOOR - 0.1, 0.2))
    axes[0].set(title="p_data = N(0, 1), p_g = N(mean, 1)", xlabel="mean of p_g")
    axes[1].set(title="p_data = N(0, 1), p_g = N(0, std²)", xlabel="standard deviation of p_g", xscale="log")
    axes[1].set_xticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
    axes[1].minorticks_off()
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 0.7))


def _draw_error(
    counts: Sequence[int], errors: Sequence[float], spread: float, slope: float, axes: Sequence[Any]
) -> None:
    axes[0].loglog(counts, errors, "o", color="tab:green", label="measured, 500 estimates each")
    axes[0].loglog(counts, [spread / math.sqrt(n) for n in counts], "k--", linewidth=1, label="sqrt(variance / n)")
    axes[0].set(title=f"slope {slope:.3f}, theory -0.5", xlabel="samples a side", ylabel="root mean square error of V")
    axes[0].legend()


CLAIMS: tuple[Check, ...] = (optimal_discriminator, value_is_jensen_shannon, error_of_the_value)
