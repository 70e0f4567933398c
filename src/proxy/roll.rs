//! Calling the roll: what concerns the clients of all workers is asked of each worker, because only it knows its own.
//!
//! ```text
//! session --Question--> inbox of every worker --> its sessions --answer--> session goes on
//! ```
//! Nothing is kept for it per client beside its worker's list, and nothing is shared: the path of commands knows
//! nothing of it. Inboxes are bounded; who asks waits for room.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};

use super::client::Selection;

/// Questions that one worker has not taken yet.
const QUESTIONS_MAX: usize = 64;

/// What a worker is asked.
pub enum Question {
    /// To describe the clients that are meant, each with its id.
    List {
        /// Which ones.
        of: Selection,
        /// Takes the lines.
        answer: oneshot::Sender<Vec<(u64, Vec<u8>)>>,
    },
    /// To close the clients that are meant.
    Kill {
        /// Which ones.
        of: Selection,
        /// Takes how many they were.
        answer: oneshot::Sender<u64>,
    },
    /// Where the connection of a client's own is, which it gets for that if it has none.
    Place {
        /// Which one.
        id: u64,
        /// Takes where it is; nothing if there is no such client.
        answer: oneshot::Sender<Option<Place>>,
    },
    /// To let a client go that blocks.
    Unblock {
        /// Which one.
        id: u64,
        /// What it is told.
        told: Told,
        /// Takes whether it did block.
        answer: oneshot::Sender<bool>,
    },
}

/// Where a connection of a client's own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is not open yet.
    Opening,
    /// Our end of it.
    At(SocketAddr),
}

/// What a client is told that is unblocked by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// As if its time were up.
    Timeout,
    /// That it was unblocked.
    Error,
}

/// The inboxes of all workers.
#[derive(Clone, Debug)]
pub struct Roll {
    inboxes: Vec<mpsc::Sender<Question>>,
}

impl Roll {
    /// A roll of so many workers, and the inbox of each.
    pub fn of(workers: usize) -> (Self, Vec<mpsc::Receiver<Question>>) {
        let (inboxes, receivers) = (0..workers).map(|_| mpsc::channel(QUESTIONS_MAX)).unzip();
        (Self { inboxes }, receivers)
    }

    /// The lines of all clients that are meant, in the order in which they came.
    pub async fn list(&self, of: &Selection) -> Vec<(u64, Vec<u8>)> {
        let mut lines = Vec::new();
        for answer in self.ask(|answer| Question::List { of: of.clone(), answer }).await {
            lines.extend(answer.await.unwrap_or_default());
        }
        lines.sort_unstable_by_key(|(id, _)| *id);
        lines
    }

    /// Closes all clients that are meant; says how many they were.
    pub async fn kill(&self, of: &Selection) -> u64 {
        let mut killed = 0;
        for answer in self.ask(|answer| Question::Kill { of: of.clone(), answer }).await {
            killed += answer.await.unwrap_or_default();
        }
        killed
    }

    /// Where the connection of a client's own is; nothing if there is no such client.
    pub async fn place_of(&self, id: u64) -> Option<Place> {
        let mut place = None;
        for answer in self.ask(|answer| Question::Place { id, answer }).await {
            place = place.or(answer.await.unwrap_or_default());
        }
        place
    }

    /// Lets a client go that blocks; says whether it did.
    pub async fn unblock(&self, id: u64, told: Told) -> bool {
        let mut unblocked = false;
        for answer in self.ask(|answer| Question::Unblock { id, told, answer }).await {
            unblocked |= answer.await.unwrap_or_default();
        }
        unblocked
    }

    /// Asks every worker; one that has ended leaves its answer out.
    async fn ask<A>(&self, question: impl Fn(oneshot::Sender<A>) -> Question) -> Vec<oneshot::Receiver<A>> {
        let mut answers = Vec::with_capacity(self.inboxes.len());
        for inbox in &self.inboxes {
            let (answer, receiver) = oneshot::channel();
            if inbox.send(question(answer)).await.is_ok() {
                answers.push(receiver);
            }
        }
        answers
    }
}
