"""The run that tests of recorders and lenses share: how long its sound is, and how it is decoded."""

from stepaudio.decoding.sampling import Sampling

SECONDS = 1.3
N_IDS = 12
GREEDY = Sampling.greedy()
