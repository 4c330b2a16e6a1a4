//! What every process holds and does, per device; pure data.
