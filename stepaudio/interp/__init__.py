"""The laboratory: looking inside, breaking on purpose, drawing. Imported by nothing below it."""
