"""What people see and type: options, results and messages, consoles, errors and exit codes."""
