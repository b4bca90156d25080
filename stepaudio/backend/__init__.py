"""Which MLX, a fast BLAS under it, and the operations that have a form of their own per backend."""
