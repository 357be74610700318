"""Whether a value of a gin file suits the annotation of its parameter, judged before anything is built."""

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import gin

from pplx_jax.configuration.names import Reference


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a class or function by parameter."""
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):  # an annotation for the type checker only, or a built-in without any
        return {}


def suits(hint: Any, value: Any) -> bool:
    """Returns whether a parameter declared as `hint` may be `value`; unfamiliar hints may be anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(suits(option, value) for option in typing.get_args(hint))
    if isinstance(value, Reference):
        return _gives(value.target.call, value.evaluate, origin or hint)
    if isinstance(value, gin.config.ConfigurableReference):  # a constant that a module defines
        return True
    if origin is Sequence:
        [item] = typing.get_args(hint)
        return isinstance(value, list | tuple) and all(suits(item, each) for each in value)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    for kind in (bool, str, list, tuple, dict):
        if kind in (hint, origin):
            return isinstance(value, kind)
    return not dataclasses.is_dataclass(hint) and not _is_protocol(hint)


def _gives(target: Callable[..., Any], called: bool, kind: Any) -> bool:
    """Returns whether a reference to `target` may give a `kind`; a function may return anything."""
    if not isinstance(kind, type):
        return True
    if not called:  # the class or function itself
        plain = (bool, int, float, str, list, tuple, dict, type(None))
        return not dataclasses.is_dataclass(kind) and not _is_protocol(kind) and kind not in plain
    if not isinstance(target, type):
        return True
    if _is_protocol(kind):
        methods = (name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)))
        return all(hasattr(target, name) for name in methods)
    ours = dataclasses.is_dataclass(target) or dataclasses.is_dataclass(kind)
    return not ours or issubclass(target, kind)


def _is_protocol(hint: Any) -> bool:
    return isinstance(hint, type) and typing.Protocol in hint.__bases__
