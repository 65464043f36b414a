"""What constructors of subclasses are called with, where a configuration has more than they take."""

import inspect
from collections.abc import Collection
from typing import Any

__all__ = ["arguments_for"]


def arguments_for(
    subclass: type, component: type, arguments: dict[str, Any], unneeded: Collection[str] = ()
) -> dict[str, Any]:
    """What a ``from_config`` gives to a subclass's constructor, which may take the official arguments alone.

    Args:
        subclass: the class that is made.
        component: the class whose ``from_config`` it is.
        arguments: of ``component``'s constructor.
        unneeded: those that a subclass can do without, whatever their value.

    Returns:
        ``arguments`` without those that ``subclass`` does not take and that are unneeded or at ``component``'s default.
    """
    own = inspect.signature(component.__init__).parameters  # type: ignore[misc]
    extra = {name for name, value in arguments.items() if name in unneeded or value == own[name].default}
    for base in subclass.__mro__[: subclass.__mro__.index(component)]:
        constructor: Any = vars(base).get("__init__")
        # Other constructors than Detectron2's configurable ones take a configuration, and pass it on.
        if hasattr(constructor, "__wrapped__"):
            taken = inspect.signature(constructor).parameters
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in taken.values()):
                arguments = {name: value for name, value in arguments.items() if name in taken or name not in extra}
    return arguments
