"""One job from its config to its result: stages, rank selection, replay."""
