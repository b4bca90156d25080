"""A research workbench for Step-Audio 2 mini on Apple MLX."""

from .backend.blas import keep_freed_memory as _keep_freed_memory
from .backend.blas import preload_blas as _preload_blas

_preload_blas()  # must come before anything that imports mlx
_keep_freed_memory()

__version__ = "0.1.0"
