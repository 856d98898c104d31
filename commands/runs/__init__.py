"""What the commands share about a run: its config, folder, session, workload and cost."""
