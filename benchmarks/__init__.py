"""Measures every stage: closed-loop success, latency, size, memory; and the report."""
