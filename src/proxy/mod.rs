//! The proxy: clients on one side, Redis on the other.
