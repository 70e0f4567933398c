//! What operators ask for: status, history. Clients of store and peer.
