//! The simulated card that processes share: its memory, its clocks, who holds what.
