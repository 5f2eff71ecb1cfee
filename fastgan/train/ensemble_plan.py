"""What an ensemble consists of: one configuration, and what differs from member to member."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastgan.errors import UserError
from fastgan.presets import PRESETS, Config, from_dict, nested, to_dict
from fastgan.presets.values import coerce

MEMBERS = 10
EXAMPLE = "{'generator_optimizer.lr': [1e-4, 2e-4]}"
FAMILY = "mlp"  # of networks that can be stacked
VARIED = (  # keys whose values may differ, or how they begin
    "generator_optimizer.",
    "discriminator_optimizer.",
    "ema.",
    "noise",
    "penalty.weight",
    "schedules.",
)


@dataclass(frozen=True)
class Plan:
    """A configuration, the members' seeds, and by key the members' values of what differs beside."""

    config: Config
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(
        cls,
        config: Config,
        members: int | None = None,
        seeds: Sequence[int] | None = None,
        vary: Mapping[str, Sequence[Any]] | None = None,
    ) -> Plan:
        """Make a plan of what was said; what was not follows. Raises UserError where it does not go together.

        Seeds that are not given: the configuration's, the next, and so on; but the configuration's for all, where
        nothing is given but what varies.
        """
        members = None if members is None else coerce("members", members, int)
        if seeds is not None:
            seeds = coerce("seeds", list(seeds) if isinstance(seeds, range) else seeds, Sequence[int])
        if vary is not None and not isinstance(vary, Mapping):
            raise UserError(f"vary takes a value for each member, such as {EXAMPLE}, not {reprlib.repr(vary)}")
        listed = {key: _listed(key, values) for key, values in (vary or {}).items()}
        lengths = {f"vary {key}": len(values) for key, values in listed.items()}
        lengths |= {} if seeds is None else {"seeds": len(seeds)}
        lengths = ({} if members is None else {"members": members}) | lengths
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise UserError(f"each member has one seed and one value of each key that varies, not {said}")
        count = next(iter(lengths.values()), MEMBERS)
        if count < 1:
            raise UserError(f"an ensemble has 1 or more members, not {count}")
        if seeds is None:
            alike = members is None and bool(listed)
            seeds = [config.seed if alike else config.seed + at for at in range(count)]
        plan = cls(config, tuple(seeds), listed)
        trees = [to_dict(own) for own in plan.configs()]  # what is wrong with a member's is found here
        # values as configurations have them: a command line has said 1e-4 as a text
        return cls(config, plan.seeds, {key: tuple(_at(tree, key) for tree in trees) for key in listed})

    def configs(self) -> list[Config]:
        """The members' configurations. Raises UserError for one that cannot be a member's."""
        _check(self.config)
        configs = []
        for at, seed in enumerate(self.seeds):
            own = {key: values[at] for key, values in self.vary.items()}
            # two checkpoints at least, so that members have a step in common whenever the process ends
            kept = max(2, self.config.keep_checkpoints)
            configs.append(from_dict(nested(own), replace(self.config, seed=seed, keep_checkpoints=kept)))
        return configs


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _listed(key: str, values: Any) -> tuple[Any, ...]:
    if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in VARIED):
        names = ", ".join(f"{name}*" if name.endswith(".") else name for name in VARIED)
        raise UserError(f"members may differ in their seeds and in {names}, not in {key}: train it as runs of its own")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"vary takes a value for each member, such as {EXAMPLE}, not {reprlib.repr(values)}")
    return tuple(values)


def _families(config: Config) -> set[str]:
    return {config.generator.name, config.discriminator.name}


def _check(config: Config) -> None:
    """Raise UserError for a configuration of which no ensemble can be trained."""
    for side in ("generator", "discriminator"):
        name = getattr(config, side).name
        if name != FAMILY:
            able = ", ".join(preset for preset, own in PRESETS.items() if _families(own) == {FAMILY} and own.pac == 1)
            raise UserError(
                f"an ensemble stacks networks of the family {FAMILY} (presets {able}), and the {side} is {name}:"
                " train each run by itself"
            )
    if config.augment:
        raise UserError("members of an ensemble see samples as they are: leave out augment")
    if config.pac > 1:
        raise UserError(
            f"members of an ensemble judge single samples, not packs of {config.pac}: train runs one by one"
        )
    if config.on_nan == "rollback":
        raise UserError("members of an ensemble go on side by side, and none rolls back: set on_nan=stop or skip")
