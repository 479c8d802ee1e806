"""The commands, a module for each noun they are about. What an operation needs is imported when it runs."""
