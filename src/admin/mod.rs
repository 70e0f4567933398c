//! The admin port: metrics, health, topology.
