//! The store: ZooKeeper behind a seam, and its in-memory twin.
