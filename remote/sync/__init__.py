"""Verified file transfer over SFTP: pushes and pulls trees of files, whole or absent."""
