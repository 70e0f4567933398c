//! What goes on beside the loop: working on our own Redis, looking at it and at the master.
//!
//! Owns: the three tasks that the host starts. Refuses: deciding. Invariants: one job at a time, and a newer one
//! ends the older; a working connection that is idle is watched, never written to, so that a park written to a
//! Redis that is stopped still is the first thing it does when it goes on.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::act::Actor;
use super::machine::action::{Input, Job};
use super::machine::obedience::Ask;
use super::machine::state::MasterOf;
use super::machine::timings::Timings;
use super::probe::Probe;
use super::redis::Login;

/// Between two attempts to open the working connection ahead of need.
const WARM_AGAIN: Duration = Duration::from_millis(200);

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
    timings: Timings,
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
        let mut probe = Probe::new(master.addr.clone(), login.clone(), timings.probe, false);
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
