"""Float bundle -> a smaller or faster one, with an account of what was quantized and what was not."""
