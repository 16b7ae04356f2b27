"""One environment of Gymnasium with parameters of one's own: keyword arguments, attributes, weights of its rewards.

A parameter goes, by its name, to the first of these that knows it:

    reward_weights__0      weight of the first of an environment's several rewards
    contexts__0__gravity   a keyword argument, here contexts={0: {"gravity": …}}; any depth
    length                 a keyword argument or an attribute of the environment
    model__opt__timestep   an attribute of an attribute, or an entry of an array in one

Attributes are set while the environment is made, as its constructor assigns them: what it computes from them, such as
the product of a mass and a length, follows. Attributes of attributes are set after that.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

REWARD_WEIGHTS = "reward_weights"


def build(env_id: str, parameters: Mapping[str, float], options: Mapping[str, Any], steps: int | None) -> gymnasium.Env:
    """The environment of an id with these parameters.

    Args:
        env_id: as Gymnasium knows it, "CartPole-v1" or "my_package:MyEnv-v0".
        parameters: by name, see above.
        options: keyword arguments of all tasks.
        steps: until an episode is truncated; None for the environment's own limit.

    Raises:
        ValueError: if a parameter is neither a keyword argument nor an attribute.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Such as that a newer version exists: it is the user's choice.
        spec = found_spec(env_id)
        creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        keywords, attributes = _split(spec, creator, parameters)
        merged = {**options}
        for name, value in keywords.items():
            path = name.split("__")
            if len(path) > 1 and path[0] in spec.kwargs:  # What else lies in it stays.
                merged.setdefault(path[0], copy.deepcopy(spec.kwargs[path[0]]))
            _put(merged, path, value)
        limit = {} if steps is None else {"max_episode_steps": steps}
        if not attributes:
            return gymnasium.make(spec, **limit, **merged, disable_env_checker=True)
        return _with_attributes(spec, creator, attributes, {**limit, **merged})


def found_spec(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id; its module is imported first, where it names one.

    Raises:
        ValueError: if there is no such environment.
    """
    import importlib

    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{env_id} needs the module {error.name}, which is not found") from error
    except gymnasium.error.Error as error:
        own = [
            known for known, spec in gymnasium.registry.items() if module and str(spec.entry_point).startswith(module)
        ]
        space = name.rpartition("/")[0]
        if space and not any(known.startswith(f"{space}/") for known in gymnasium.registry):
            remedy = f"install it, or name the module that registers it too, as my_package:{name}"
            raise ValueError(f"{env_id} is of a package that is not there: {remedy}") from error
        near = difflib.get_close_matches(name, own or gymnasium.registry, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; name its module too, as my_package:MyEnv-v0"
        hint = f"; {module} registers {', '.join(own[:5])}" if own and not near else hint
        raise ValueError(f"expected an environment that Gymnasium knows, got {env_id!r}{hint}") from error


def _split(
    spec: EnvSpec, creator: Callable[..., Any], parameters: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Parameters that are keyword arguments, and those that must be attributes."""
    signature = inspect.signature(creator).parameters
    keywords: dict[str, Any] = {}
    attributes: dict[str, float] = {}
    for name, value in parameters.items():
        first = name.partition("__")[0]
        if first == REWARD_WEIGHTS:
            continue
        if first in signature or first in spec.kwargs:
            default = signature[first].default if first in signature and first == name else spec.kwargs.get(name)
            keywords[name] = like(default, value)
        else:
            attributes[name] = value
    return keywords, attributes


def _put(keywords: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a keyword argument, or an entry of a mapping in it."""
    *parents, last = (int(part) if part.isdigit() else part for part in path)
    inner: Any = keywords
    for part in parents:
        inner[part] = dict(inner.get(part) or {})
        inner = inner[part]
    inner[last] = value


def whole_keys(value: Any) -> Any:
    """Mappings with keys that are whole numbers, such as {0: …}, which JSON writes as text, as they were."""
    if not isinstance(value, Mapping):
        return value
    return {
        int(key) if isinstance(key, str) and key.isdigit() else key: whole_keys(inner) for key, inner in value.items()
    }


def like(example: Any, value: float) -> Any:
    """A number as the type of another one, where it is a whole one or a truth value."""
    return type(example)(value) if isinstance(example, bool | int) and float(value).is_integer() else value


def _with_attributes(
    spec: EnvSpec, creator: Callable[..., Any], attributes: dict[str, float], keywords: dict[str, Any]
) -> gymnasium.Env:
    """The environment with attributes set: those of its own while it is made, where a class makes it."""
    own = {name: value for name, value in attributes.items() if "__" not in name and inspect.isclass(creator)}
    if own:
        spec = EnvSpec(**{**_fields(spec), "entry_point": _subclass(creator, own)})  # type: ignore[arg-type]
    env = gymnasium.make(spec, **keywords, disable_env_checker=True)
    for name, value in attributes.items():
        *parents, last = name.split("__")
        inner: Any = env.unwrapped
        for part in parents:
            inner = _entry(inner, part)
        current = _entry(inner, last)
        if name in own:
            continue
        if last.isdigit():
            inner[int(last)] = value
        else:
            setattr(inner, last, like(current, value))
    return env


def _subclass(creator: type, attributes: dict[str, float]) -> type:
    """The class of an environment, in which some attributes are what they are whatever its code assigns to them."""

    def assign(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, like(value, attributes[name]) if name in attributes else value)

    known = [name for name in attributes if hasattr(creator, name)]
    of_class = {name: like(getattr(creator, name), attributes[name]) for name in known}
    return type(creator.__name__, (creator,), {"__setattr__": assign, **of_class})


def _fields(spec: EnvSpec) -> dict[str, Any]:
    """What a spec is made of."""
    return {name: getattr(spec, name) for name in inspect.signature(EnvSpec).parameters}


def _entry(inner: Any, part: str) -> Any:
    """An attribute, or an entry of an array.

    Raises:
        ValueError: if there is none of the name.
    """
    if part.isdigit() and hasattr(inner, "__getitem__"):
        return inner[int(part)]
    if not hasattr(inner, part):
        known = [name for name, value in vars(inner).items() if isinstance(value, int | float) and name[0] != "_"]
        near = difflib.get_close_matches(part, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"its numbers are {', '.join(sorted(known)) or 'none'}"
        raise ValueError(f"expected a keyword argument or attribute of {type(inner).__name__}, got {part!r}; {hint}")
    return getattr(inner, part)
