//! What proxies tell of a planned change: that nothing is in flight through them, and that those who hear through them moved.
//!
//! Owns: who told what of one reserved epoch. Refuses: how long to wait for them. Invariant: only what is said of this change
//! counts. A proxy that names no course is older than courses are: then the epoch has to do, which an agent reserves for one
//! change only for as long as it lives.

use std::collections::BTreeSet;

use crate::topology::{Course, Epoch};

/// See the module's note.
#[derive(Clone, Debug)]
pub(super) struct Audience {
    epoch: Epoch,
    drained: BTreeSet<String>,
    attached: BTreeSet<String>,
}

impl Audience {
    /// Nobody told anything of the change to `epoch` yet.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            drained: BTreeSet::new(),
            attached: BTreeSet::new(),
        }
    }

    /// A proxy has nothing in flight that may change something. `nonce` is that of the state which began the change.
    pub(super) fn handle_drained(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>, nonce: &str) {
        if self.is_meant(epoch, course, nonce) {
            self.drained.insert(proxy);
        }
    }

    /// Those who hear through a proxy have moved.
    pub(super) fn handle_attached(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>, nonce: &str) {
        if self.is_meant(epoch, course, nonce) {
            self.attached.insert(proxy);
        }
    }

    /// Whether all of `proxies` are done with what was in flight.
    pub(super) fn has_drained(&self, proxies: &BTreeSet<String>) -> bool {
        proxies.is_subset(&self.drained)
    }

    /// Those of `proxies` that are not, as a list for people; none if there are none.
    pub(super) fn undrained(&self, proxies: &BTreeSet<String>) -> Option<String> {
        let late: Vec<&str> = proxies.difference(&self.drained).map(String::as_str).collect();
        (!late.is_empty()).then(|| late.join(", "))
    }

    /// Whether those who hear have moved; a proxy that was not heard of before is not waited for a second time.
    pub(super) fn has_attached(&self, proxies: &BTreeSet<String>) -> bool {
        proxies
            .intersection(&self.drained)
            .all(|proxy| self.attached.contains(proxy))
    }

    fn is_meant(&self, epoch: Epoch, course: Option<&Course>, nonce: &str) -> bool {
        epoch == self.epoch && course.is_none_or(|course| course.as_str() == nonce)
    }
}
