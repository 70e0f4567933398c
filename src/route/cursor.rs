//! What a scan's cursor says beside the server's own number (rule A12): which shard is being scanned, and which life of its
//! server gave it. Pure.
//!
//! ```text
//! bit 52      36 35                0
//!     shard|life  server's number       below 2^53, exact in a double (JavaScript, PHP, Lua)
//! ```
//! With one shard, and in scans of one key, all 17 bits are the life's. A life of 0 stands for the beginning of a shard.

use crate::topology::{RunId, ShardIndex};

/// Bits of a cursor that the server may use. It numbers the buckets of a table, of which there are about as many as keys.
pub const RAW_BITS: u32 = 36;
/// The largest number of a server's that is passed on.
pub const RAW_MAX: u64 = (1 << RAW_BITS) - 1;
/// Bits above them.
const TAG_BITS: u32 = 17;
/// The largest tag.
pub const TAG_MAX: u64 = (1 << TAG_BITS) - 1;

/// Tells the cursors of one life of a server from those of others; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// The cursor that a client sees for a server's.
    pub fn put_on(self, raw: u64) -> u64 {
        self.0 << RAW_BITS | raw
    }

    /// Whether it stands on a cursor.
    pub fn is_on(self, cursor: u64) -> bool {
        cursor >> RAW_BITS == self.0
    }
}

/// What is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    shard: u16,
    shards: u16,
}

impl Scope {
    /// One key, or all of them where there is one shard.
    pub const ONE: Self = Self { shard: 0, shards: 1 };

    /// The shard among `shards` where a scan of all keys goes on that has this cursor; any nonsense begins anew.
    pub fn of_scan(cursor: &[u8], shards: usize) -> Self {
        let shards = u16::try_from(shards).unwrap_or(u16::MAX).max(1);
        let first = Self { shard: 0, shards };
        let tag = number(cursor).map_or(0, |cursor| cursor >> RAW_BITS);
        match u16::try_from(tag >> first.life_bits()) {
            Ok(shard) if shard < shards && tag <= TAG_MAX => Self { shard, shards },
            Ok(_) | Err(_) => first,
        }
    }

    /// Which shard.
    pub fn shard(self) -> ShardIndex {
        ShardIndex(self.shard)
    }

    fn life_bits(self) -> u32 {
        TAG_BITS.saturating_sub(u16::BITS - (self.shards - 1).leading_zeros())
    }

    /// The tag of a life: FNV-1a of its run id. None where the server does not say which life it is in, and no shard has
    /// to be named: its cursors pass as they are.
    pub fn tag(self, life: Option<&RunId>) -> Option<Tag> {
        let life = match life {
            Some(life) => life.as_str(),
            None if self.shards > 1 => "",
            None => return None,
        };
        let hash = life.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let lives = ((1 << self.life_bits()) - 1).max(1);
        let life = (hash ^ (hash >> 32)) % lives + 1;
        Some(Tag(u64::from(self.shard) << self.life_bits() | life))
    }

    /// The cursor with which a scan goes on that has come to the end of this shard; 0 if that was the last.
    pub fn after(self) -> u64 {
        match self.shard + 1 {
            next if next < self.shards => (u64::from(next) << self.life_bits()) << RAW_BITS,
            _ => 0,
        }
    }
}

/// A cursor as servers read it: digits only.
pub fn number(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_never_nothing_and_spread() {
        let tags: std::collections::HashSet<u64> = (0..10_000)
            .map(|life| {
                Scope::ONE
                    .tag(Some(&RunId::from(format!("{life:040x}").as_str())))
                    .unwrap()
                    .0
            })
            .collect();
        assert!(tags.iter().all(|tag| (1..=TAG_MAX).contains(tag)));
        assert!(tags.len() > 5000, "{}", tags.len());
        assert_eq!(Scope::ONE.tag(None), None);
    }

    #[test]
    fn a_cursor_says_which_shard_goes_on() {
        for shards in [1, 2, 3, 16, 1000, 4096] {
            let mut scope = Scope::of_scan(b"0", shards);
            for shard in 0..shards {
                assert_eq!(usize::from(scope.shard), shard, "of {shards}");
                for life in [None, Some(RunId::from("a")), Some(RunId::from("b"))] {
                    let Some(tag) = scope.tag(life.as_ref()) else { continue };
                    let cursor = tag.put_on(RAW_MAX);
                    assert!(cursor < 1 << 53);
                    assert_eq!(Scope::of_scan(cursor.to_string().as_bytes(), shards), scope);
                    assert_ne!(cursor >> RAW_BITS, scope.after() >> RAW_BITS);
                }
                let next = scope.after();
                assert_eq!(next == 0, shard + 1 == shards);
                scope = Scope::of_scan(next.to_string().as_bytes(), shards);
            }
            assert_eq!(scope.shard, 0);
        }
        for nonsense in [
            "",
            "x",
            "-1",
            "9007199254740992",
            "18446744073709551615",
            "9007199254740991",
        ] {
            assert_eq!(Scope::of_scan(nonsense.as_bytes(), 3).shard, 0, "{nonsense}");
        }
    }
}
