"""SafeCFG and the Harmful Guidance Redirector (HGR), arXiv 2412.16039: the method, for any host.

    import hgr

    redirector = hgr.load("my.safetensors")

The rooms, each of which imports only those before it: `core`, `demo`; `data`, `detection`; `training`; `hosts`; `cli`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.file import load, save
    from .core.hgr import HGR, HGRError

__version__ = "0.1.0"
__all__ = ["HGR", "HGRError", "__version__", "load", "save"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import on first access, since the command line and the data need no torch."""
    if name in ("HGR", "HGRError"):
        from .core import hgr as module
    elif name in ("load", "save"):
        from .core import file as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
