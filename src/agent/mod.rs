//! The agent beside each Redis: registration, detection, failover.
