//! What an election or a switchover came to, for the history.

use std::time::{Duration, Instant};

use crate::topology::codec::{Ending, Kind, SwitchRequest};
use crate::topology::{Epoch, NodeId};

use super::quorum::Grounds;

/// See the module's note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it was.
    pub kind: Kind,
    /// What became of it.
    pub result: Ending,
    /// The epoch it published; if it published none, the one that stood.
    pub epoch: Epoch,
    /// The master before, if any.
    pub from: Option<NodeId>,
    /// The master after; of a switchover that came to nothing, who should have been it.
    pub to: Option<NodeId>,
    /// Why, in a sentence.
    pub why: String,
    /// On what grounds a new master was elected.
    pub grounds: Option<Grounds>,
    /// What the new master held of the accepted stream, in bytes.
    pub offset: Option<i64>,
    /// Bytes of the stream that the old master had and the new one lacks, where known.
    pub lost_bytes: Option<u64>,
    /// Who asked for it.
    pub asked_by: Option<String>,
    /// The request it ends.
    pub request: Option<String>,
    /// How long each phase took, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

impl Outcome {
    /// The end of a switchover that moved nothing.
    pub fn unmoved(
        request: &SwitchRequest,
        result: Ending,
        epoch: Epoch,
        from: Option<NodeId>,
        to: Option<NodeId>,
        why: String,
    ) -> Self {
        Self {
            kind: Kind::Switchover,
            result,
            epoch,
            from,
            to,
            why,
            grounds: None,
            offset: None,
            lost_bytes: None,
            asked_by: Some(request.asked_by.clone()),
            request: Some(request.id.clone()),
            phases: Vec::new(),
        }
    }

    /// The phases as people read them.
    pub fn timeline(&self) -> String {
        let phases: Vec<String> = self
            .phases
            .iter()
            .map(|(name, took)| format!("{name} {took:.1?}"))
            .collect();
        phases.join(", ")
    }
}

/// When each phase ended.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    began: Instant,
    ends: Vec<(&'static str, Instant)>,
}

impl Marks {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            ends: Vec::new(),
        }
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn end(&mut self, phase: &'static str, now: Instant) {
        self.ends.push((phase, now));
    }

    pub(super) fn phases(&self) -> Vec<(&'static str, Duration)> {
        let starts = std::iter::once(self.began).chain(self.ends.iter().map(|(_, end)| *end));
        let phases = self.ends.iter().zip(starts);
        phases
            .map(|((name, end), start)| (*name, end.saturating_duration_since(start)))
            .collect()
    }
}
