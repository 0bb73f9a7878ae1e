"""Student checkpoint -> float bundle, checked with the runtime."""
