"""Settings from a file: TOML of one's own, or the configuration of a run."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from torchq.config import Config, to_json
from torchq.errors import UsageError
from torchq.presets import resolve
from torchq.runs.folder import CONFIG, read_config

_WORDS = ("vary", "ranges")
"""Settings that become others."""
_OF_THE_MACHINE = ("device", "engine")
"""What a run found where it ran; another machine may have others."""


def read_settings(path: Path) -> dict[str, Any]:
    """Settings by name, as `torchq.train` takes them.

    Args:
        path: a .toml file, whose keys are names of settings, with dashes if one likes; a run folder, or the config.json
            in one, of which all counts but the device and the engine.

    Raises:
        UsageError: if it cannot be read, or says a setting that there is none of.
    """
    if path.is_dir() or path.name == CONFIG:
        return _of_run(read_config(path if path.is_dir() else path.parent))
    try:
        if path.suffix == ".toml":
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".json":
            values = json.loads(path.read_bytes())
        else:
            raise UsageError(f"`config`: expected a .toml or .json file, or a run folder, got {path}")
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"`config`: {path} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"`config`: expected settings by name in {path}")
    settings = {name.replace("-", "_"): value for name, value in values.items()}
    known = (*Config.model_fields, *_WORDS)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"`config`: {path} has {name!r}, but there is no such setting{hint}")
    return settings


def _of_run(config: Config) -> dict[str, Any]:
    """What a run was told beyond its preset."""
    usual = to_json(resolve(config.algo, config.env, config.preset, {}))
    found = {name: getattr(config, name) for name, value in to_json(config).items() if value != usual[name]}
    for name in (*_OF_THE_MACHINE, *(["num_tasks"] if config.tasks else [])):
        found.pop(name, None)
    return {"algo": config.algo, "env": config.env, "preset": config.preset, **found}
