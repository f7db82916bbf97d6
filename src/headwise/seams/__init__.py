"""What headwise is handed to: other people's runtimes, one room each."""
