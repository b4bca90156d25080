"""Codes to a voice, and a voice to codes."""
