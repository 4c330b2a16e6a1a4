//! The host budget and the arenas shadows live in.
