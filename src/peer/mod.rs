//! The small RESP2 protocol between agents and proxies.
