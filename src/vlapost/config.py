"""The configuration: its schema, and how a run's settings are put together.

    conf/base.yaml  <-  conf/<name>.yaml (only what differs)  <-  key=value words of the command line

A name of several words, ppo_dimension, is what differs from conf/ppo.yaml.

`schema.py` says which keys exist and of which type; `conf/base.yaml` gives each its value and its comment.
`limits.py` says which values make sense. None of them imports torch or the simulator, so a wrong key stops a command
before anything heavy loads; and OmegaConf is imported only where settings are read, so the policy can do without it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, get_type_hints

from vlapost.limits import check_read, check_values
from vlapost.schema import (
    CONF,
    CONTROL_FREQ,
    ROOT,
    AlgorithmConfig,
    Config,
    DemosConfig,
    EnvConfig,
    EvaluationConfig,
    ExchangeConfig,
    ExperienceConfig,
    GeneralizationConfig,
    GroundingConfig,
    OptimConfig,
    PolicyConfig,
    TrainerConfig,
    UserError,
)

__all__ = [
    "CONF",
    "CONTROL_FREQ",
    "ROOT",
    "AlgorithmConfig",
    "Config",
    "DemosConfig",
    "EnvConfig",
    "EvaluationConfig",
    "ExchangeConfig",
    "ExperienceConfig",
    "GeneralizationConfig",
    "GroundingConfig",
    "OptimConfig",
    "PolicyConfig",
    "TrainerConfig",
    "UserError",
    "differences",
    "known_keys",
    "load",
    "to_yaml",
]


PATHS = (
    ("policy", "checkpoint"),
    ("policy", "adapter"),
    ("policy", "statistics"),
    ("demos", "path"),
    ("grounding", "path"),
)  # ~ is expanded


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Settings of the run `name` (a file conf/<name>.yaml, or "base"), with `key=value` overrides applied last.

    Raises:
        UserError: an unknown file or key, or a value of the wrong type; the sentence names it and the nearest.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
    from yaml import YAMLError

    if not (CONF / f"{name}.yaml").is_file():
        known = sorted(p.stem for p in CONF.glob("*.yaml"))
        raise UserError(f"There is no configuration conf/{name}.yaml; there are: {', '.join(known)}.")
    for word in overrides:
        key = word.split("=", 1)[0]
        if "=" not in word:
            raise UserError(f"Override '{word}' is not of the form key=value.")
        _check_key(key, f"override '{word}'")
    names = accumulate(name.split("_"), "{}_{}".format)  # ppo_dimension is what differs from ppo
    files = [CONF / f"{part}.yaml" for part in names if part != "base"]
    layers = []
    for path in [CONF / "base.yaml", *(path for path in files if path.is_file())]:
        try:
            layers.append((path, OmegaConf.load(path)))
        except YAMLError as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    try:
        layers.append((Path("command line"), OmegaConf.from_dotlist(list(overrides))))
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"An override cannot be read: {' '.join(str(error).split())}.") from None
    merged = OmegaConf.structured(Config)
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except ConfigKeyError as error:
            _check_key(str(error.full_key), str(source.name))
            raise
        except (ValidationError, OmegaConfBaseException) as error:
            why = str(error).splitlines()[0]
            if "ListConfig" in why and "of type 'ListConfig'" not in why:
                why = "it must be a list, [A,B]"
            raise UserError(f"Wrong value for '{error.full_key or 'a section'}' in {source.name}: {why}.") from None
    try:
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{error.full_key}': {str(error).splitlines()[0]}.") from None
    for part, name in PATHS:
        section = getattr(config, part)
        setattr(section, name, os.path.expanduser(getattr(section, name)))
    check_values(config)
    default: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), layers[0][1]))
    check_read(config, default)
    return config


def to_yaml(config: Config) -> str:
    """The settings as they are written beside a run."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(config: Config, written: str) -> list[str]:
    """Keys in which `config` differs from settings written by `to_yaml`, as 'key: was A, now B'.

    A key that did not exist when they were written had its default; one that does not exist any more is a difference.
    """
    from omegaconf import OmegaConf

    then = OmegaConf.create(written)
    old = OmegaConf.merge(OmegaConf.load(CONF / "base.yaml"), then)
    new = OmegaConf.create(to_yaml(config))
    keys, leaves = known_keys(), _leaves(OmegaConf.to_container(then))
    pairs = [(key, OmegaConf.select(old, key), OmegaConf.select(new, key)) for key in keys]
    gone = [f"{key}: was {value}, is no setting any more" for key, value in leaves if key not in keys]
    return [f"{key}: was {a}, now {b}" for key, a, b in pairs if a != b] + gone


@cache
def known_keys() -> tuple[str, ...]:
    """All settings, as section.name."""
    return tuple(_keys(Config))


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_key(key: str, where: str) -> None:
    known = known_keys()
    if key in known:
        return
    if any(k.startswith(key + ".") for k in known):
        raise UserError(f"'{key}' in {where} is a section; give its settings one by one, {key}.NAME=VALUE.")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(f"Unknown key '{key}' in {where}{hint}")
