"""Sweeps: a declared grid, its runs, faults, store and provenance."""
