"""Training the nano checkpoint: corpus, augmentation, loop. Run as `python -m stepaudio.train`."""
