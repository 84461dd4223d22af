"""The parts of DiffKD: the noise schedule and its steps, the networks, and what is done with one pair of taps."""
