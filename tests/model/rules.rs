//! The rules of the protocol as switches, and the bounds of a run.

use super::state::Budget;

/// What candidates are measured by (rule R6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lineage {
    /// As it is: accepted streams are a set, an unpublished one is added before it is promoted on top of.
    Set,
    /// Only the published stream, or one that was promoted out of it.
    PublishedOrBranch,
    /// Only the published stream: who was promoted and never published is out.
    Published,
    /// Anything.
    Ignored,
}

/// Who counts towards n-W (rule R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counting {
    /// Exactly those who may win.
    Candidates,
    /// Everybody whose life is valid; who may win is asked afterwards.
    Lives,
}

/// When a switchover's target is verified (rule R8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moving {
    /// Fence, then verify, then promote.
    Fenced,
    /// Verify (while writes are paused, which may end early), fence, promote.
    VerifiedEarly,
    /// Promote before the old master is fenced.
    Unfenced,
}

/// Each field is a rule; all are on in [`Rules::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// n-W members are parked before anybody is promoted.
    pub park_before_promote: bool,
    pub counting: Counting,
    pub lineage: Lineage,
    /// R6, our own addition: a stream that begins in an election over an unfinished one is accepted before anybody
    /// follows it. Such a promotion cannot be resumed from the published stream, and a node that was synchronised as a
    /// whole names no stream but its master's.
    pub promoted_is_adopted: bool,
    /// A life counts only if it is the valid one.
    pub runs_count: bool,
    /// The published master, parked in its published life, is enough. Our own addition.
    pub master_suffices: bool,
    /// R2: a publication makes valid only those who proved themselves.
    pub valid_is_proven: bool,
    /// R3: a seat is valid again only when it has everything the master has.
    pub seats_catch_up: bool,
    /// R4: nobody is attached to the master before it is a member.
    pub members_first: bool,
    /// R5: members are removed, and W changes, in an epoch of its own.
    pub changes_are_epochs: bool,
    /// R5: that epoch gives the master new users.
    pub changes_rotate: bool,
    /// R5: and its publication makes valid only those who proved themselves.
    pub changes_prove: bool,
    pub moving: Moving,
    /// R9: each block kills what is stuck in older connections.
    pub blocks_kill: bool,
    /// R9, R10: a restarted agent knows the highest epoch it obeyed.
    pub agents_remember: bool,
    /// R11: WAIT is asked on a connection of the write's epoch and life.
    pub wait_in_epoch: bool,
}

impl Rules {
    pub const ALL: Self = Self {
        park_before_promote: true,
        counting: Counting::Candidates,
        lineage: Lineage::Set,
        promoted_is_adopted: true,
        runs_count: true,
        master_suffices: true,
        valid_is_proven: true,
        seats_catch_up: true,
        members_first: true,
        changes_are_epochs: true,
        changes_rotate: true,
        changes_prove: true,
        moving: Moving::Fenced,
        blocks_kill: true,
        agents_remember: true,
        wait_in_epoch: true,
    };
}

/// Where a run begins, what may happen in it, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Members at the start (of three nodes); the others are up and empty.
    pub members: u8,
    pub w: u8,
    pub writes: u8,
    /// The highest epoch that may be claimed.
    pub epochs: u8,
    /// A restarted node may come back with its data less its last write, too.
    pub old_data: bool,
    /// Every acknowledgement counts, also one for which nobody was waited.
    pub strict: bool,
    /// Nodes without a seat take one.
    pub joins: bool,
    /// Members (a set) and W after a change.
    pub change: (u8, u8),
    pub faults: Budget,
}

impl Bounds {
    /// n=3, W=1, one write, one election.
    pub const SMALL: Self = Self {
        members: 3,
        w: 1,
        writes: 1,
        epochs: 2,
        old_data: false,
        strict: false,
        joins: false,
        change: (0, 0),
        faults: Budget {
            kills: 0,
            restarts: 0,
            forgets: 0,
            stuck: 0,
            switches: 0,
            changes: 0,
        },
    };
}
