//! Finds a command by name, in any case, without copying the name: an open-addressed table of (hash, id).
//!
//! Invariant: at most a quarter of the places are taken, so every search meets an empty one and ends.

use super::entry::CommandId;

/// Where the commands are. A subcommand is filed under its parent, so `config|get` is never found as one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    places: Box<[Place]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    tag: u32,
    id: u16,
}

const EMPTY: Place = Place { tag: 0, id: u16::MAX };

impl Index {
    /// Files names; where two are equal the first is found.
    pub(super) fn build(names: &[(Option<CommandId>, &[u8], CommandId)]) -> Self {
        let size = (names.len() * 4).next_power_of_two();
        let mut index = Self {
            places: vec![EMPTY; size].into(),
        };
        for &(parent, name, id) in names {
            let hash = hash(parent, name);
            let mut at = index.home(hash);
            while index.places[at].id != EMPTY.id {
                at = (at + 1) & (size - 1);
            }
            index.places[at] = Place {
                tag: tag(hash),
                id: id.0,
            };
        }
        index
    }

    /// The first command filed under `name` for which `matches` holds.
    #[inline]
    pub(super) fn find(
        &self,
        parent: Option<CommandId>,
        name: &[u8],
        matches: impl Fn(CommandId) -> bool,
    ) -> Option<CommandId> {
        let hash = hash(parent, name);
        let mut at = self.home(hash);
        loop {
            let place = *self.places.get(at)?;
            if place.id == EMPTY.id {
                return None;
            }
            if place.tag == tag(hash) && matches(CommandId(place.id)) {
                return Some(CommandId(place.id));
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    fn home(&self, hash: u64) -> usize {
        (hash as usize) & self.places.len().wrapping_sub(1)
    }
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Mixes length, first and last eight bytes with the case bit set: cheap, and enough for a table whose names are given.
/// Names that differ only in between, or in bit 5 of a byte that is no letter, share a hash; `matches` tells them apart.
#[inline]
fn hash(parent: Option<CommandId>, name: &[u8]) -> u64 {
    const CASE: u64 = 0x2020_2020_2020_2020;
    let seed = parent.map_or(0, |id| u64::from(id.0) + 1);
    let (head, tail) = ends(name);
    let length = name.len() as u64;
    let left = (head | CASE) ^ 0x9e37_79b9_7f4a_7c15 ^ length.wrapping_mul(0xff51_afd7_ed55_8ccd);
    let right = (tail | CASE) ^ 0xc2b2_ae3d_27d4_eb4f ^ seed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let wide = u128::from(left) * u128::from(right);
    (wide as u64) ^ ((wide >> 64) as u64)
}

#[inline]
fn ends(name: &[u8]) -> (u64, u64) {
    if let (Some(head), Some(tail)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        return (u64::from_le_bytes(*head), u64::from_le_bytes(*tail));
    }
    if let (Some(head), Some(tail)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        return (u32::from_le_bytes(*head).into(), u32::from_le_bytes(*tail).into());
    }
    let at = |index: usize| u64::from(name.get(index).copied().unwrap_or_default());
    (at(0) | at(1) << 8 | at(2) << 16, 0)
}
