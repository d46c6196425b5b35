"""The HTTP server: protocols that people's clients speak, in front of one engine."""
