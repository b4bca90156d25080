"""Training the four nets of token2wav, one at a time. Run as `python -m stepaudio.train.token2wav`.

Speech with phonemes, F0 and speaker names becomes a speech tokenizer, a speaker encoder (CAM++), a vocoder (HiFT) and
a flow-matching net, of small sizes, in the folder layout that `Synthesizer.load` reads.
"""
