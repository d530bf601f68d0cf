"""The least and the greatest values of settings, checked before anything is loaded or asked."""

import math
from collections.abc import Mapping
from typing import Any

from polyvec.errors import SettingsError

Ranges = Mapping[str, tuple[float, float]]
COUNT = (1, math.inf)
SHARE = (0.001, 1.0)


def check_ranges(settings: Any, ranges: Ranges, where: str) -> None:
    """SettingsError for a number, or one of several, outside of its range; None is not checked."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not low <= each <= high:
                most = "" if high == math.inf else f" and at most {high:g}"
                raise SettingsError(f"{where}: {name} {each!r} must be at least {low:g}{most}")
