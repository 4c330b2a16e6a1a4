//! A node in a temporary directory for tests and the demo: simulated card, agent, clients.
