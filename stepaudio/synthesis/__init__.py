"""Voices, streaming and the synthesizer: audio codes to sound."""
