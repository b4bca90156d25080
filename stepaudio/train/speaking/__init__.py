"""Training the decoder to speak: to read aloud and to repeat speech, while it goes on transcribing.

Encoder and adapter stay as they are. What is said is known by its codes, which a trained speech tokenizer gives.
"""
