"""Pushes and pulls trees of files over SFTP, verified, every file whole or absent."""
