"""Real storage servers for tests, started on free loopback ports and stopped with the session."""
