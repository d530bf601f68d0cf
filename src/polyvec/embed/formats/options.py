"""Options of loading that are checked before anything is read."""

import os

from polyvec.errors import InputError

SWITCHES = ("local_files_only", "trust_remote_code", "merge_adapters")


def check_options(**options: object) -> None:
    """Raises InputError for an option that is empty (an unset variable?) or of another type.

    A switch is a bool: the text "no" would turn trust_remote_code on.
    """
    for name, value in options.items():
        if name in SWITCHES:
            if not isinstance(value, bool):
                raise InputError(f"{name} is {value!r}, expected True or False")
        elif value is not None and not (name == "token" and isinstance(value, bool)):
            if not isinstance(value, str | os.PathLike):
                raise InputError(f"{name} is {type(value).__name__} {value!r}, expected a string")
            if not str(value).strip():
                raise InputError(f"{name} is empty; leave it out, or give a value")
