"""Reads files of rows and turns them into tokens and labels; nothing is dropped silently."""
