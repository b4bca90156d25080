"""Sizes of a language model for benches and checks that would run the published ones."""

from stepaudio.models.decoder import TextConfig
from stepaudio.models.encoder import AudioEncoderConfig
from stepaudio.models.speech_lm import StepAudioConfig

SIZES = StepAudioConfig(TextConfig(64, 128, 2, 1, 2, 512, 1e-6, 1e6), AudioEncoderConfig(128, 1500, 64, 2, 2, 64, 3, 2))
