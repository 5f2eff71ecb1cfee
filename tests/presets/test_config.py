"""Configurations: round trip through YAML, unknown keys, types, dotted assignments."""

import pytest

from fastgan import presets
from fastgan.errors import UserError
from fastgan.presets import Config, Network, Schedule, difference, from_dict, nested
from fastgan.presets.values import parse


@pytest.mark.parametrize("name", presets.PRESETS)
def test_yaml_round_trip(name, tmp_path):
    config = presets.preset(name)
    file = tmp_path / "config.yaml"
    file.write_text(presets.dump(config))
    again = presets.from_file(file)
    assert difference(config, again) == {}
    assert presets.dump(again) == file.read_text()


def test_file_lies_over_its_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: gan-digits\nsteps: 10\ngenerator_optimizer: {lr: 1e-3}\ngenerator: {hidden: [8]}\n")
    config = presets.from_file(file)
    assert config.steps == 10
    assert config.generator_optimizer.lr == 1e-3  # YAML itself reads 1e-3 as text
    assert config.generator_optimizer.betas == (0.5, 0.999)
    assert config.generator.options["hidden"] == [8]
    assert config.generator.options["norm_eps"] == 1e-5
    assert config.batch_size == presets.preset("gan-digits").batch_size


def test_presets_hold_the_published_figures():
    digits, mlp, dcgan, ring = (presets.preset(name) for name in ("gan-digits", "mlp", "dcgan", "ring8"))
    assert (digits.data, mlp.data, dcgan.data, ring.data) == ("digits", "mnist", "mnist", "ring8")
    assert (mlp.z_dim, mlp.batch_size, mlp.updates, mlp.n_critic) == (100, 64, "generator_first", 1)
    assert (dcgan.z_dim, dcgan.batch_size, dcgan.updates, dcgan.image_size) == (100, 128, "shared", 32)
    for config in (digits, mlp, dcgan):
        for adam in (config.generator_optimizer, config.discriminator_optimizer):
            assert (adam.lr, adam.betas) == (2e-4, (0.5, 0.999))
    assert ring.generator_optimizer == ring.discriminator_optimizer == presets.Optimizer(lr=1e-4, betas=(0.8, 0.999))
    assert (ring.batch_size, ring.generator.options["hidden"], ring.generator.options["output"]) == (
        100,
        [400] * 4,
        "none",
    )


def test_alias():
    assert presets.preset("gan-mnist") is presets.preset("mlp")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"bacth_size": 3}, "did you mean 'batch_size'"),
        ({"generator_optimizer": {"learning_rate": 1}}, "unknown key of generator_optimizer"),
        ({"batch_size": "many"}, "batch_size takes a number"),
        ({"batch_size": 2.5}, "whole number"),
        ({"batch_size": True}, "number"),
        ({"batch_size": 0}, "at least 1"),
        ({"keep_checkpoints": 0}, "at least 1"),
        ({"steps": -1}, "at least 0"),
        ({"steps": 10**400}, "number"),
        ({"seed": 2**32}, "seed must be between"),
        ({"generator_optimizer": {"lr": -1}}, "at least 0"),
        ({"generator_optimizer": {"eps": -1}}, "at least 0"),
        ({"generator_optimizer": {"betas": [0.5, 1.0]}}, "betas from 0 to below 1"),
        ({"preset": "mlp"}, "cannot become"),
        ({"preset": "../elsewhere"}, "cannot become"),
        ({"generator_optimizer": {"lr": "nan"}}, "finite"),
        ({"generator_optimizer": {"betas": [0.5]}}, "takes 2 values"),
        ({"generator_optimizer": 3}, "is an optimiser"),
        ({"generator": [1]}, "is a network"),
        ({"latent": "gaussian"}, "latent"),
        ({"updates": "generator_frist"}, "did you mean 'generator_first'"),
        ({"data": 7}, "takes a text"),
        ({"n_critic": 2, "updates": "generator_first"}, "n_critic=1"),
    ],
)
def test_mistakes_are_one_clear_line(values, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "preset: [", "- 1\n- 2\n", "3", "? [1]: 2", "\x00"])
def test_files_that_are_no_configuration(text, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        presets.from_file(file)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    for text in ("stpes: 1\n", "preset: gan-digit\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: unknown .* did you mean"):
            presets.from_file(file)


def test_an_alias_in_a_file_is_the_preset(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("preset: gan-mnist\n")
    assert presets.from_file(file) == presets.preset("mlp")


def test_values_that_unfold_are_shown_short(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    with pytest.raises(UserError, match="unfolds into more values"):
        presets.read(write(tmp_path / "deep.yaml", "\n".join(lines)))
    tree: list = ["x", "x"]
    for _ in range(39):
        tree = [tree, tree]
    for key in ("steps", "latent", "data", "generator", "generator_optimizer", "preset"):
        with pytest.raises(UserError) as caught:
            from_dict({key: tree})
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 50_000,
        "? " * 50_000,
        "a: &a [*a, *a]",
        "a: &a {b: *a}",
        "a: " + "[x, " * 25 + "x" + "]" * 25,
        "\n".join(["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 45))]),
        "a: &a " + str(list(range(9_000))) + "\nb: [*a, *a]",
        "a: &a x\nb: [" + "*a, " * 200 + "]",
        "steps: 1" + "0" * 5_000,
        "x" * 200_000,
        "a: !!python/object/apply:os.system [true]",
        "!!python/object:fastgan.Trainer {}",
        "a: !!binary x",
        "steps: 2001-99-99",
        "generator: {1: 2}",
        "generator: {[1]: 2}",
        "generator: {hidden: !!set {1, 2}}",
        "schedules: {1: {to: 1, steps: 2}}",
        "data: !!binary aGVsbG8=",
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.timeout(20)
def test_bombs_and_tags_are_one_clear_line(tmp_path, text):
    with pytest.raises(UserError) as caught:
        presets.from_file(write(tmp_path / "config.yaml", text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and "config.yaml" in str(caught.value)
    with pytest.raises(UserError):
        from_dict({"steps": parse(text)})


def write(path, text):
    path.write_text(text)
    return path


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        presets.from_file(tmp_path / "absent.yaml")


def test_dotted_keys_nest():
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert nested({"a": {"b": 1}, "a.c": 2}) == {"a": {"b": 1, "c": 2}}
    for both in ({"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}, {"x.a.b": 2, "x.a": 1}):
        with pytest.raises(UserError, match="both as a value and as a group"):
            nested(both)


def test_schedules_are_laid_over_each_other(tmp_path):
    first = from_dict(nested({"schedules.noise.to": 0, "schedules.noise.steps": 100, "noise": 0.1}))
    assert first.schedules == {"noise": Schedule(0.0, 100)}
    keys = {"schedules": {"noise": {"begin": 5}, "generator_lr": {"to": 1e-5, "steps": 9, "shape": "cosine"}}}
    second = from_dict(keys, first)
    assert second.schedules["noise"] == Schedule(0.0, 100, 5)
    assert from_dict({"schedules": {"noise": None}}, second).schedules.keys() == {"generator_lr"}
    file = tmp_path / "config.yaml"
    file.write_text(presets.dump(second))
    assert presets.from_file(file) == second


@pytest.mark.parametrize(
    "values, message",
    [
        ({"schedules": 3}, "group of quantities"),
        ({"schedules": {"nois": {"to": 0, "steps": 3}}}, "did you mean 'noise'"),
        ({"schedules": {"noise": {"to": 1}}}, "needs to and steps"),
        ({"schedules": {"noise": {"to": 0, "steps": 3, "shap": "linear"}}}, "did you mean 'shape'"),
        ({"schedules": {"noise": {"to": 0, "steps": -3}}}, "at least 0"),
        ({"schedules": {"noise": {"to": 0, "steps": 3, "shape": "exponential"}}}, "above 0"),
        ({"schedules": {"generator_beta1": {"to": 1.0, "steps": 3}}}, "below 1"),
        ({"ema": 0.9}, "an average: give its keys"),
        ({"ema": {"decay": 1.0}}, "below 1"),
        ({"ema": {"warmup": 0.5}}, "at least 1"),
        ({"noise": -1}, "at least 0"),
    ],
)
def test_what_is_no_average_schedule_or_noise(values, message):
    with pytest.raises(UserError, match=message) as caught:
        from_dict(values)
    assert "\n" not in str(caught.value)


def test_another_network_drops_the_options_of_the_former():
    config = from_dict({"generator": "dcgan"}, presets.preset("gan-digits"))
    assert config.generator == Network("dcgan")


def test_difference_names_the_dotted_keys():
    assert difference(Config(), from_dict({"steps": 5, "generator": {"hidden": [1]}})) == {
        "steps": (Config().steps, 5),
        "generator.hidden": (None, [1]),
    }


@pytest.mark.parametrize(
    "text, value", [("3", 3), ("[1, 2]", [1, 2]), ("digits", "digits"), ("true", True), ("", None)]
)
def test_values_are_yaml(text, value):
    assert parse(text) == value
