//! What goes on beside the loop: working on our own Redis, or on one whose agent is gone, and looking at ours and the master.
//!
//! Owns: the four tasks that the host starts. Refuses: deciding. Invariants: one job at a time, and a newer one
//! ends the older; a working connection that is idle is watched, never written to, so that a park written to a
//! Redis that is stopped still is the first thing it does when it goes on.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::act::Actor;
use super::beat::Beat;
use super::machine::action::{AskId, Input, Job, Reply};
use super::machine::obedience::Ask;
use super::machine::state::MasterOf;
use super::probe::Probe;
use super::redis::{Login, RedisError};
use crate::topology::Addr;

/// Between two attempts to open the working connection ahead of need.
const WARM_AGAIN: Duration = Duration::from_millis(200);
/// How long the connection to a Redis without an agent is kept after the last job.
const DEPUTY_IDLE: Duration = Duration::from_secs(2);

/// Carries jobs out, one at a time; a newer one ends the older, whose connection goes with it. Between jobs the
/// connection is kept open, so that the first park needs no connect.
pub(super) async fn act(mut actor: Actor, mut jobs: mpsc::Receiver<(Job, Ask)>, inputs: mpsc::Sender<Input>) {
    loop {
        let first = tokio::select! {
            biased;
            job = jobs.recv() => job,
            () = keep_warm(&mut actor) => continue,
        };
        let Some(mut next) = first else { return };
        loop {
            let (job, ask) = next;
            let result = tokio::select! {
                biased;
                newer = jobs.recv() => match newer {
                    Some(newer) => {
                        next = newer;
                        continue;
                    }
                    None => return,
                },
                result = actor.act(&ask) => result.map(Box::new).map_err(|error| error.to_string()),
            };
            if inputs.send(Input::Acted(job, result)).await.is_err() {
                return;
            }
            break;
        }
    }
}

/// A job on the Redis of another node, whose agent is gone.
pub(super) struct Deputed {
    pub(super) id: AskId,
    pub(super) addr: Addr,
    pub(super) ask: Ask,
}

/// Carries out what is asked of Redis servers without an agent, one job at a time; a newer one ends the older. A park begins
/// a new connection, all else goes on over it, and it is closed after a while.
pub(super) async fn deputise(
    actor_at: impl Fn(Addr) -> Actor,
    mut jobs: mpsc::Receiver<Deputed>,
    inputs: mpsc::Sender<Input>,
) {
    let mut held: Option<(Addr, Actor)> = None;
    let mut waiting = None;
    loop {
        let next = match waiting.take() {
            Some(job) => Some(job),
            None if held.is_none() => jobs.recv().await,
            None => match timeout(DEPUTY_IDLE, jobs.recv()).await {
                Ok(job) => job,
                Err(_) => {
                    held = None;
                    continue;
                }
            },
        };
        let Some(Deputed { id, addr, ask }) = next else { return };
        if let Ask::Park { .. } = ask {
            held = Some((addr.clone(), actor_at(addr.clone())));
        }
        let acting = async {
            let actor = held.as_mut().filter(|(at, _)| *at == addr).map(|(_, actor)| actor);
            match (actor, &ask) {
                (Some(actor), Ask::Park { .. }) => actor.act(&ask).await,
                (Some(actor), _) => actor.go_on(&ask).await,
                (None, _) => Err(RedisError::Lost("it was closed meanwhile".to_owned())),
            }
        };
        let result = tokio::select! {
            biased;
            newer = jobs.recv() => match newer {
                Some(newer) => {
                    waiting = Some(newer);
                    continue;
                }
                None => return,
            },
            result = acting => result,
        };
        let reply = match result {
            Ok(facts) => Reply::Done(Box::new(facts)),
            Err(error) => Reply::Failed(format!("its agent is gone, and its Redis: {error}")),
        };
        if inputs.send(Input::Answered(id, reply)).await.is_err() {
            return;
        }
    }
}

/// Opens the working connection and waits until it ends. May be dropped at any point.
async fn keep_warm(actor: &mut Actor) {
    match actor.warm_up().await {
        Ok(()) => actor.cooled().await,
        Err(error) => {
            // The probe tells the machine what there is to know.
            tracing::debug!(%error, "no working connection to redis yet");
            tokio::time::sleep(WARM_AGAIN).await;
        }
    }
}

pub(super) async fn look_at_own(mut probe: Probe, inputs: mpsc::Sender<Input>) {
    loop {
        let seen = probe.look().await;
        if inputs.send(Input::Own(seen)).await.is_err() {
            return;
        }
    }
}

pub(super) async fn look_at_master(
    login: Login,
    beat: Beat,
    mut watched: watch::Receiver<Option<MasterOf>>,
    inputs: mpsc::Sender<Input>,
) {
    loop {
        let Some(master) = watched.borrow_and_update().clone() else {
            if watched.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut probe = Probe::new(master.addr.clone(), login.clone(), beat, false);
        loop {
            let seen = tokio::select! {
                changed = watched.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                seen = probe.look() => seen,
            };
            if inputs.send(Input::Master(master.clone(), seen)).await.is_err() {
                return;
            }
        }
    }
}
