"""What people see and type: output, console, errors, shared options."""
