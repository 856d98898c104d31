"""Shows the rows before money is spent and the run after it, as text, HTML and JSON."""
