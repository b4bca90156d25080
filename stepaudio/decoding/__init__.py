"""Logit rules, the sampler, the one decoding loop and what comes out of it."""
