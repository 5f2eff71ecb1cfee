"""Configurations: round trip through YAML, unknown keys, types, dotted assignments."""

import pytest

from fastgan import presets
from fastgan.errors import UserError
from fastgan.presets import Config, Network, difference, from_dict, nested
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


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        presets.from_file(tmp_path / "absent.yaml")


def test_dotted_keys_nest():
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert nested({"a": {"b": 1}, "a.c": 2}) == {"a": {"b": 1, "c": 2}}
    with pytest.raises(UserError, match="both given"):
        nested({"a": 1, "a.b": 2})


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
