"""From files of rows to tokens and labels, losing nothing unsaid."""
