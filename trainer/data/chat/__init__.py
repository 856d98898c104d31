"""Turns conversations into examples: read at the border, rendered by a chat template, tokenized."""
