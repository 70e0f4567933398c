//! What each fuzz target does with its bytes. The same functions run over the committed corpus in the integration tests,
//! with a stable compiler, and under libFuzzer in `fuzz/targets`.
//!
//! Each takes any bytes and panics where a promise is broken.

// A target uses one of them.
#![allow(dead_code)]

pub mod commands;
pub mod keys;
pub mod peers;
pub mod replies;
pub mod requests;
pub mod znodes;

/// Ends of pieces in which `len` bytes may arrive, in order: repeatable, and other ones for other bytes, so that the
/// bytes alone reproduce what they show.
pub fn cuts(bytes: &[u8]) -> Vec<usize> {
    // FNV-1a, then SplitMix64.
    let mut seed = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let count = next() % 8;
    let mut cuts: Vec<usize> = (0..count)
        .map(|_| (next() % (bytes.len() as u64 + 1)) as usize)
        .collect();
    cuts.sort_unstable();
    cuts
}
