"""Float bundle -> int8 or int4 bundle, with an account of what was quantized and what was not."""
