"""Where the metrics of a training are written for people who watch it."""
