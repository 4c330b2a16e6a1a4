//! The clients' socket: one session per client.
