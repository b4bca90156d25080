"""Every stage against recorded outputs of the reference. Names are imported lazily."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .run import verify

__all__ = [
    "verify",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "verify": "run",
    },
)
