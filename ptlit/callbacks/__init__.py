"""Lightning callbacks of our own; what Lightning brings is configured, not wrapped."""
