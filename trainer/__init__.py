"""What is shipped alone to the machine and run as `python -m trainer`; imports no other room."""
