"""The methods: what is trained beside the frozen base, and how that base is kept."""
