"""The table `eval`: how held-out rows are scored, one file and one class per kind of answer."""
