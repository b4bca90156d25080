"""Manifests, word errors, repetition and bootstrap intervals."""
