"""Tensors on disk: headers, layouts, reports, loading, saving."""
