//! The reply window: reserve on read, fill in any order, release from the head. No other code may reorder replies.
//!
//! ```text
//! request --> reserve(lane, n) --> RunId        reply bytes --> fill(RunId, bytes, n) --> out (head) | held (behind it)
//! ```
//! Invariant: the bytes in `out` are the replies to a prefix of the commands, in their order, the last one possibly
//! in part. Consecutive commands for one lane share a run, so that a pipeline costs one entry.

use std::collections::VecDeque;

/// Names a run of a window for as long as it is unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(u32);

#[derive(Debug)]
struct Run {
    lane: u32,
    need: u32,
    /// Nothing joins it.
    alone: bool,
    /// Reply bytes that arrived before the run was at the head.
    held: Vec<u8>,
}

/// The unanswered commands of one session, in order.
#[derive(Debug, Default)]
pub struct Window {
    runs: VecDeque<Run>,
    head: u32,
    unanswered: u32,
}

impl Window {
    /// How many commands are unanswered.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// The place of what nobody hears: bytes that fill it vanish. For replies to come soon.
    pub fn nobody(&self) -> RunId {
        RunId(self.head.wrapping_sub(1))
    }

    /// The place that the next run gets.
    pub fn next(&self) -> RunId {
        let runs = u32::try_from(self.runs.len()).unwrap_or(u32::MAX);
        RunId(self.head.wrapping_add(runs))
    }

    /// Whether the client waits for what fills this place.
    pub fn holds(&self, run: RunId) -> bool {
        (run.0.wrapping_sub(self.head) as usize) < self.runs.len()
    }

    /// A place for `count` replies that lane number `lane` will give; joins the last run if that is the same lane's.
    pub fn reserve(&mut self, lane: u32, count: u32) -> RunId {
        self.unanswered += count;
        match self.runs.back_mut() {
            Some(run) if run.lane == lane && run.need > 0 && !run.alone => run.need += count,
            _ => self.runs.push_back(Run {
                lane,
                need: count,
                alone: false,
                held: Vec::new(),
            }),
        }
        self.last()
    }

    /// A place for one reply that can be told from all others by its run.
    pub fn reserve_alone(&mut self, lane: u32) -> RunId {
        self.unanswered += 1;
        self.runs.push_back(Run {
            lane,
            need: 1,
            alone: true,
            held: Vec::new(),
        });
        self.last()
    }

    /// A reply of our own, behind everything that was asked before it.
    pub fn local(&mut self, reply: &[u8], out: &mut Vec<u8>) {
        match self.runs.back_mut() {
            None => out.extend_from_slice(reply),
            Some(run) if run.need == 0 => run.held.extend_from_slice(reply),
            Some(_) => self.runs.push_back(Run {
                lane: u32::MAX,
                need: 0,
                alone: false,
                held: reply.to_vec(),
            }),
        }
    }

    /// Bytes of a run's replies, `replies` of which they complete. Everything releasable goes to `out`.
    pub fn fill(&mut self, id: RunId, bytes: &[u8], replies: u32, out: &mut Vec<u8>) {
        let index = id.0.wrapping_sub(self.head) as usize;
        let Some(run) = self.runs.get_mut(index) else { return };
        if index == 0 {
            out.extend_from_slice(bytes);
        } else {
            run.held.extend_from_slice(bytes);
        }
        run.need = run.need.saturating_sub(replies);
        self.unanswered = self.unanswered.saturating_sub(replies);
        if index == 0 && run.need == 0 {
            self.release(out);
        }
    }

    /// Bytes that answer nothing: Redis speaks unasked, or a reply is not whole. Only for the connection whose replies
    /// are at the head, and between two calls that complete a frame.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes);
    }

    fn last(&self) -> RunId {
        let index = u32::try_from(self.runs.len() - 1).unwrap_or(u32::MAX);
        RunId(self.head.wrapping_add(index))
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        while self.runs.front().is_some_and(|run| run.need == 0) {
            self.runs.pop_front();
            self.head = self.head.wrapping_add(1);
            if let Some(next) = self.runs.front_mut() {
                out.append(&mut next.held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_leave_in_the_order_of_their_commands() {
        let (mut window, mut out) = (Window::default(), Vec::new());
        let a = window.reserve(1, 2);
        let b = window.reserve(2, 1);
        window.local(b"+L\r\n", &mut out);
        window.fill(b, b"+B\r\n", 1, &mut out);
        assert!(out.is_empty());
        window.fill(a, b"+A1\r\n+A", 1, &mut out);
        window.fill(a, b"2\r\n", 1, &mut out);
        assert_eq!(out, b"+A1\r\n+A2\r\n+B\r\n+L\r\n");
        assert_eq!(window.unanswered(), 0);
    }

    #[test]
    fn what_fills_the_place_of_nobody_vanishes() {
        let (mut window, mut out) = (Window::default(), Vec::new());
        let nobody = window.nobody();
        let run = window.reserve(1, 1);
        assert!(window.holds(run) && !window.holds(nobody));
        window.fill(nobody, b"+QUEUED\r\n", 1, &mut out);
        window.fill(run, b"+A\r\n", 1, &mut out);
        window.fill(nobody, b"+QUEUED\r\n", 1, &mut out);
        assert_eq!((out.as_slice(), window.unanswered()), (&b"+A\r\n"[..], 0));
        assert!(!window.holds(run));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u32),
        Alone(u32),
        Local,
        Answer(usize),
    }

    proptest! {
        #[test]
        fn any_schedule_keeps_the_order(steps in prop::collection::vec(prop_oneof![(0u32..3).prop_map(Step::Ask), (0u32..3).prop_map(Step::Alone), Just(Step::Local), any::<usize>().prop_map(Step::Answer)], 0..200)) {
            let (mut window, mut out) = (Window::default(), Vec::new());
            let mut lanes: Vec<VecDeque<(RunId, u32)>> = vec![VecDeque::new(); 3];
            let mut asked = 0u32;
            let answer = |lane: usize, lanes: &mut Vec<VecDeque<(RunId, u32)>>, window: &mut Window, out: &mut Vec<u8>| {
                if let Some((run, number)) = lanes[lane].pop_front() {
                    window.fill(run, format!("{number} ").as_bytes(), 1, out);
                }
            };
            for step in steps {
                match step {
                    Step::Ask(lane) => {
                        lanes[lane as usize].push_back((window.reserve(lane, 1), asked));
                        asked += 1;
                    }
                    Step::Alone(lane) => {
                        let run = window.reserve_alone(lane);
                        let shared = lanes.iter().flatten().any(|(other, _)| *other == run);
                        prop_assert!(!shared);
                        lanes[lane as usize].push_back((run, asked));
                        asked += 1;
                    }
                    Step::Local => {
                        window.local(format!("{asked} ").as_bytes(), &mut out);
                        asked += 1;
                    }
                    Step::Answer(lane) => answer(lane % 3, &mut lanes, &mut window, &mut out),
                }
            }
            for lane in 0..3 {
                while !lanes[lane].is_empty() {
                    answer(lane, &mut lanes, &mut window, &mut out);
                }
            }
            let expected: String = (0..asked).map(|number| format!("{number} ")).collect();
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
            prop_assert_eq!(window.unanswered(), 0);
        }
    }
}
