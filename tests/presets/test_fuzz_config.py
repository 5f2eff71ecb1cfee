"""Mutated configurations: a configuration that a run can be made of and compared with, or one clear line."""

import random
import time

import pytest

from fastgan import presets
from fastgan.errors import UserError

LAYERS = """\
preset: ring8
steps: 1e3
generator: {name: mlp, hidden: [4, 4], output: none}
generator_optimizer: {lr: 1e-3, betas: [0.5, 0.9]}
penalty: {name: r1, every: 2}
ema: {decay: .9}
schedules: {noise: {to: 0, steps: 9, shape: cosine}}
noise: 0.1
keep_best: null
flip: false
"""
FLAT = "data: &d 'npz:x.npz'\nseed: 3\nbatch_size: 8\nlatent: uniform\nobjective: *d\n---\n"
NASTY = [
    *("!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "!!timestamp 2001-01-01", "!!float x"),
    *(
        "&a [*a, *a]",
        "*d",
        "<<: *d",
        "[" * 40,
        "{" * 40,
        "- - - -",
        "? ",
        "1" * 5000,
        "-1",
        ".inf",
        ".nan",
        "0x_",
        "1e999",
    ),
    *(
        "1:30:00",
        "~",
        "''",
        '"\\',
        "%YAML 9.9\n---\n",
        "\t",
        "\ud7ff",
        "\x85",
        "|2\n",
        "!<x",
        "true",
        "2001-13-45",
        "null",
    ),
]


def mutation(rng, mutate):
    content = rng.choice((LAYERS, LAYERS, FLAT)).encode()
    if rng.random() < 0.5:
        at = rng.choice([at for at, byte in enumerate(content) if byte in b" :\n,[{"]) + 1
        end = at + rng.choice((0, 0, 1, 4, 12))
        content = content[:at] + rng.choice(NASTY).encode() + content[end:]
    return mutate(content, rng) if rng.random() < 0.7 else content


@pytest.mark.parametrize("part", range(4))
def test_configurations(mutate, full, part):
    good = 0
    for seed in range(part, 100_000 if full else 2_000, 4):
        text = mutation(random.Random(seed), mutate).decode("utf-8", errors="replace")
        began, complaint = time.monotonic(), ""
        try:
            base, keys = presets.start(presets.keys_of(text, "config.yaml"))
            config = presets.from_dict(keys, base)
            good += 1
            presets.difference(config, base)
            if good % 10 == 0:
                written = presets.dump(config)
                again = presets.from_dict(presets.start(presets.keys_of(written, "again"))[1], base)
                assert presets.dump(again) == written
        except UserError as error:
            complaint = str(error)
            assert len(complaint.splitlines()) == 1 and 20 < len(complaint) < 1500, complaint
        assert time.monotonic() - began < 60, text
    assert good > 25
