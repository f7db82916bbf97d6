"""What is done beside the task while a host is trained, a hook a file."""
