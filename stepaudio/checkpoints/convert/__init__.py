"""The published token2wav files, read without running them and written as safetensors."""
