"""Teachers, the student network, losses, training."""
