"""The sizes of known architectures, each read from a `config.json` by a formula."""
