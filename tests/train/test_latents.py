"""Latents to look at: what is cut off, what lies between, and what stands in a row."""

import math

import pytest
import torch

from fastgan.errors import UserError
from fastgan.train.latents import Layout, between, drawn
from fastgan.train.sampler import Latents


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def law(kind, bound, x):
    """The distribution function of the law on [-bound, bound]."""
    if kind == "uniform":
        return (x / min(bound, 1) + 1) / 2
    return (torch.erf(x / math.sqrt(2)) / math.erf(bound / math.sqrt(2)) + 1) / 2


@pytest.mark.parametrize("bound", [0.05, 0.5, 0.9, 2.0])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_truncation_keeps_what_is_inside_and_draws_the_rest_from_the_same_law(kind, bound):
    free, cut = drawn(kind, 50, 1000, seeded()), drawn(kind, 50, 1000, seeded(), bound)
    inside = free.abs() <= bound
    assert torch.equal(cut[inside], free[inside])
    assert cut.abs().max() <= bound
    values = cut.flatten().double().sort().values
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert (law(kind, bound, values) - steps).abs().max() < 1.63 / math.sqrt(len(values))  # Kolmogorov, 1 in 100


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_extreme_truncations_are_finite(kind):
    assert torch.equal(drawn(kind, 8, 100, seeded(), 1e30), drawn(kind, 8, 100, seeded()))
    tiny = drawn(kind, 8, 100, seeded(), 1e-30)
    assert 0 < tiny.abs().max() <= 1e-30


def test_the_plain_laws():
    normal, uniform = drawn("normal", 40, 1000, seeded()), drawn("uniform", 40, 1000, seeded())
    assert normal.std() == pytest.approx(1, abs=0.02)
    assert uniform.std() == pytest.approx(1 / math.sqrt(3), abs=0.01)
    assert uniform.abs().max() <= 1
    with pytest.raises(UserError, match="normal"):
        drawn("gamma", 4, 4, seeded())


def test_normal_latents_keep_to_the_sphere_at_even_angles():
    ends = drawn("normal", 64, 12, seeded())
    ends *= 8 / ends.norm(dim=1, keepdim=True)
    first, last = ends[:6], ends[6:]
    path = between("normal", first, last, 9).view(6, 9, 64)
    assert torch.equal(path[:, 0], first)
    assert torch.equal(path[:, -1], last)
    torch.testing.assert_close(path.norm(dim=2), torch.full((6, 9), 8.0))
    turns = torch.cosine_similarity(path[:, 1:].double(), path[:, :-1].double(), dim=2).acos()
    torch.testing.assert_close(turns, turns[:, :1].expand_as(turns), rtol=1e-4, atol=1e-5)


def test_uniform_latents_go_straight():
    ends = drawn("uniform", 5, 6, seeded())
    path = between("uniform", ends[:3], ends[3:], 4).view(3, 4, 5)
    torch.testing.assert_close(path[:, 1], ends[:3] * 2 / 3 + ends[3:] / 3)
    assert torch.equal(path[:, -1], ends[3:])


@pytest.mark.parametrize("last", [[1.0, 2.0], [-1.0, -2.0]], ids=["same", "opposite"])
def test_points_without_a_circle_go_straight(last):
    first, last = torch.tensor([[1.0, 2.0]]), torch.tensor([last])
    path = between("normal", first, last, 5)
    torch.testing.assert_close(path[2:3], (first + last) / 2)
    assert torch.equal(path[-1:], last)


def test_rows_of_interpolation_have_ends_of_their_own():
    z = Layout(24, 8, interpolate=True).latents("normal", 6, seeded()).view(3, 8, 6)
    ends = drawn("normal", 6, 6, seeded())
    torch.testing.assert_close(z[:, 0], ends[0::2])
    torch.testing.assert_close(z[:, -1], ends[1::2])


def test_class_rows_share_their_latents():
    layout = Layout(20, 5, class_rows=True)
    z = layout.latents("normal", 6, seeded()).view(4, 5, 6)
    assert torch.equal(z, z[:1].expand_as(z))
    assert len(z[0].unique(dim=0)) == 5
    assert layout.labels(3, seeded()).tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [0] * 5
    walk = Layout(20, 5, interpolate=True, class_rows=True).latents("uniform", 6, seeded()).view(4, 5, 6)
    assert torch.equal(walk, walk[:1].expand_as(walk))
    torch.testing.assert_close(walk[0, 2], (walk[0, 0] + walk[0, 4]) / 2)


def test_labels():
    assert Layout(4).labels(0, seeded()) is None
    assert Layout(4, label=2).labels(3, seeded()).tolist() == [2] * 4
    anyhow = Layout(3000).labels(3, seeded())
    assert anyhow.bincount().tolist() == pytest.approx([1000] * 3, abs=100)
    rows = Layout(80, 8, interpolate=True).labels(5, seeded()).view(10, 8)
    assert (rows == rows[:, :1]).all()
    assert len(rows[:, 0].unique()) > 1


def test_discrete_latents_are_fair_coins():
    z = drawn("discrete", 40, 1000, seeded())
    assert set(z.unique().tolist()) == {-1.0, 1.0} and abs(z.mean()) < 0.03
    assert torch.equal(drawn("discrete", 40, 1000, seeded(), 1.5), z)
    with pytest.raises(UserError, match=r"within 0\.5"):
        drawn("discrete", 4, 3, seeded(), 0.5)
    other = Latents("discrete", 40, torch.device("cpu"), 3).draw(1000)
    assert set(other.unique().tolist()) == {-1.0, 1.0} and abs(other.mean()) < 0.03
