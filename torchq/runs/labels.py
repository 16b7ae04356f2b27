"""What runs are called where they are compared: by their methods, by the settings that differ, or by their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torchq.config import Config
from torchq.runs.run import Run

ALGO_NAMES = {
    "stlrq": "S-TLR-Q", "lrq": "LR-Q", "clrq": "C-LR-Q", "tabular": "tabular Q", "lmi-ql": "LMI-QL",
    "lmi-qli": "LMI-QLi", "lspi": "LSPI",
}  # fmt: skip
"""As papers call them."""
_NOT_SHOWN = ("device", "engine", "deterministic", "optimal")
_MOST_SETTINGS = 2
"""In a label."""


def labels(runs: Sequence[Run]) -> list[str]:
    """The shortest kind of name that tells the runs apart.

    Methods; methods with at most two settings that differ between runs of one method; folders; whole paths.
    """
    algos = [ALGO_NAMES[run.config.algo] for run in runs]
    kinds = (algos, _with_settings(runs, algos), [run.folder.name for run in runs], [str(run.folder) for run in runs])
    return next((names for names in kinds if len(set(names)) == len(names)), kinds[-1])


def differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """Settings in which configurations differ, with the value of each."""
    rows = [
        (name, [_text(getattr(config, name)) for config in configs])
        for name in Config.model_fields
        if name not in _NOT_SHOWN
    ]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _with_settings(runs: Sequence[Run], algos: Sequence[str]) -> list[str]:
    found = []
    for run, algo in zip(runs, algos, strict=True):
        alike = [other for other, same in zip(runs, algos, strict=True) if same == algo]
        rows = differences([other.config for other in alike])
        if len(rows) > _MOST_SETTINGS:
            return list(algos)
        number = next(i for i, other in enumerate(alike) if other is run)
        found.append(", ".join([algo, *(f"{name.replace('_', '-')} {values[number]}" for name, values in rows)]))
    return found


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "…"
