//! The reply window: reserve on read, fill in any order, release from the head. No other code may reorder replies.
//!
//! ```text
//! request --> reserve(lane, n) --> RunId        reply bytes --> fill(RunId, bytes, n) --> out (head) | held (behind it)
//! ```
//! Invariant: the bytes in `out` are the replies to a prefix of the commands, in their order, the last one possibly
//! in part. Consecutive commands for one lane share a run, so that a pipeline costs one entry.

use std::collections::VecDeque;

use crate::route::Join;

/// Names a run of a window for as long as it is unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(u32);

#[derive(Debug)]
struct Run {
    lane: u32,
    need: u32,
    bond: Bond,
    /// Reply bytes that arrived before the run was at the head.
    held: Vec<u8>,
}

/// How a run stands to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bond {
    /// What the same lane is asked next joins it.
    Open,
    /// Nothing joins it.
    Alone,
    /// The reply to a part of a split request, this many runs behind that of the first part.
    Part(u16),
}

/// A split request, whose parts have runs that follow each other.
#[derive(Debug)]
struct Joint {
    /// The run of its first part.
    first: u32,
    /// How many parts lack something.
    lacking: u32,
    join: Join,
}

/// The unanswered commands of one session, in order.
#[derive(Debug, Default)]
pub struct Window {
    runs: VecDeque<Run>,
    /// Those of split requests, in order.
    joints: VecDeque<Joint>,
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
            Some(run) if run.lane == lane && run.need > 0 && run.bond == Bond::Open => run.need += count,
            _ => self.push_back(lane, count, Bond::Open),
        }
        self.last()
    }

    /// A place for one reply that can be told from all others by its run.
    pub fn reserve_alone(&mut self, lane: u32) -> RunId {
        self.unanswered += 1;
        self.push_back(lane, 1, Bond::Alone);
        self.last()
    }

    /// Places for the parts of one request, which these lanes will answer with so many replies; together they are one.
    pub fn reserve_joint(&mut self, lanes: &[(u32, u32)], join: Join) -> Vec<RunId> {
        self.unanswered += 1;
        let first = self.next();
        self.joints.push_back(Joint {
            first: first.0,
            lacking: u32::try_from(lanes.len()).unwrap_or(u32::MAX),
            join,
        });
        let places = lanes.iter().zip(0..).map(|((lane, replies), part)| {
            self.push_back(*lane, *replies, Bond::Part(part));
            self.last()
        });
        places.collect()
    }

    fn push_back(&mut self, lane: u32, need: u32, bond: Bond) {
        self.runs.push_back(Run {
            lane,
            need,
            bond,
            held: Vec::new(),
        });
    }

    /// A reply of our own, behind everything that was asked before it.
    pub fn local(&mut self, reply: &[u8], out: &mut Vec<u8>) {
        match self.runs.back_mut() {
            None => out.extend_from_slice(reply),
            Some(run) if run.need == 0 && run.bond == Bond::Open => run.held.extend_from_slice(reply),
            Some(_) => self.runs.push_back(Run {
                lane: u32::MAX,
                need: 0,
                bond: Bond::Open,
                held: reply.to_vec(),
            }),
        }
    }

    /// Bytes of a run's replies, `replies` of which they complete. Everything releasable goes to `out`.
    pub fn fill(&mut self, id: RunId, bytes: &[u8], replies: u32, out: &mut Vec<u8>) {
        let index = id.0.wrapping_sub(self.head) as usize;
        let Some(run) = self.runs.get_mut(index) else { return };
        if let Bond::Part(part) = run.bond {
            let whole = replies > 0 && run.need > 0 && run.need <= replies;
            run.need = run.need.saturating_sub(replies);
            self.fill_part(id.0.wrapping_sub(part.into()), part, bytes, whole, out);
            return;
        }
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

    /// Bytes of a part of the request whose first part has the run `first`.
    fn fill_part(&mut self, first: u32, part: u16, bytes: &[u8], whole: bool, out: &mut Vec<u8>) {
        let Some(joint) = self.joints.iter_mut().find(|joint| joint.first == first) else {
            return;
        };
        joint.join.fill(part.into(), bytes, whole);
        if whole {
            joint.lacking -= 1;
            if joint.lacking == 0 {
                self.unanswered -= 1;
            }
        }
        if first == self.head {
            self.release(out);
        }
    }

    /// Gives out all that stands at the head, up to what is not answered.
    fn release(&mut self, out: &mut Vec<u8>) {
        while let Some(run) = self.runs.front_mut() {
            out.append(&mut run.held);
            let done = match run.bond {
                Bond::Part(_) => self.release_joint(out),
                Bond::Open | Bond::Alone => (run.need == 0).then_some(1),
            };
            let Some(done) = done else { return };
            for _ in 0..done {
                self.runs.pop_front();
                self.head = self.head.wrapping_add(1);
            }
        }
    }

    /// Gives out what there is of the split request at the head; how many runs it had if that was all.
    fn release_joint(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let joint = self.joints.front_mut()?;
        if !joint.join.show(out) || joint.lacking > 0 {
            return None;
        }
        self.joints.pop_front().map(|joint| joint.join.parts())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route::{Joining, Part, Split};
    use crate::topology::{ShardId, ShardIndex};

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

    fn sum_of_two() -> Join {
        let part = |shard| Part {
            shard: ShardIndex(shard),
            request: Vec::new(),
            replies: 1,
            keys: 1,
        };
        let mut split = Split {
            joining: Joining::Sum,
            writes: true,
            parts: vec![part(0), part(1)],
            order: Vec::new(),
        };
        Join::new(&mut split, 0, |_| ShardId::from("s1"))
    }

    #[test]
    fn parts_are_one_reply_in_its_place() {
        let (mut window, mut out) = (Window::default(), Vec::new());
        let before = window.reserve(0, 1);
        let parts = window.reserve_joint(&[(0, 1), (1, 1)], sum_of_two());
        let after = window.reserve(1, 1);
        window.local(b"+L\r\n", &mut out);
        assert_eq!(window.unanswered(), 3);
        window.fill(parts[1], b":", 0, &mut out);
        window.fill(parts[1], b"2\r\n", 1, &mut out);
        window.fill(after, b"+A\r\n", 1, &mut out);
        assert_eq!(window.unanswered(), 2);
        window.fill(before, b"+B\r\n", 1, &mut out);
        assert_eq!((out.as_slice(), window.unanswered()), (&b"+B\r\n"[..], 1));
        window.fill(parts[0], b":1\r\n", 1, &mut out);
        assert_eq!(out, b"+B\r\n:3\r\n+A\r\n+L\r\n");
        assert!(!window.holds(parts[0]) && window.unanswered() == 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u32),
        Alone(u32),
        Both,
        Local,
        Answer(usize),
    }

    proptest! {
        #[test]
        fn any_schedule_keeps_the_order(steps in prop::collection::vec(prop_oneof![(0u32..3).prop_map(Step::Ask), (0u32..3).prop_map(Step::Alone), Just(Step::Both), Just(Step::Local), any::<usize>().prop_map(Step::Answer)], 0..200)) {
            let (mut window, mut out) = (Window::default(), Vec::new());
            let mut lanes: Vec<VecDeque<(RunId, String)>> = vec![VecDeque::new(); 3];
            let mut expected: Vec<String> = Vec::new();
            let answer = |lane: usize, lanes: &mut Vec<VecDeque<(RunId, String)>>, window: &mut Window, out: &mut Vec<u8>| {
                if let Some((run, reply)) = lanes[lane].pop_front() {
                    window.fill(run, reply.as_bytes(), 1, out);
                }
            };
            for step in steps {
                let reply = format!(":{}\r\n", expected.len());
                match step {
                    Step::Ask(lane) => {
                        lanes[lane as usize].push_back((window.reserve(lane, 1), reply.clone()));
                        expected.push(reply);
                    }
                    Step::Alone(lane) => {
                        let run = window.reserve_alone(lane);
                        let shared = lanes.iter().flatten().any(|(other, _)| *other == run);
                        prop_assert!(!shared);
                        lanes[lane as usize].push_back((run, reply.clone()));
                        expected.push(reply);
                    }
                    Step::Both => {
                        let runs = window.reserve_joint(&[(0, 1), (2, 1)], sum_of_two());
                        lanes[0].push_back((runs[0], reply.clone()));
                        lanes[2].push_back((runs[1], ":0\r\n".to_owned()));
                        expected.push(reply);
                    }
                    Step::Local => {
                        window.local(reply.as_bytes(), &mut out);
                        expected.push(reply);
                    }
                    Step::Answer(lane) => answer(lane % 3, &mut lanes, &mut window, &mut out),
                }
                let answered = expected.len() - out.iter().filter(|byte| **byte == b':').count();
                prop_assert!(window.unanswered() as usize <= answered);
            }
            for lane in 0..3 {
                while !lanes[lane].is_empty() {
                    answer(lane, &mut lanes, &mut window, &mut out);
                }
            }
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected.concat());
            prop_assert_eq!(window.unanswered(), 0);
        }
    }
}
