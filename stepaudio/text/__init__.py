"""Tokenizer, chat template, prompts, sentences."""
