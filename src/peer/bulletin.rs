//! What an agent tells everyone who is connected, as far as it still matters.
//!
//! Pure. Invariants: each kind of news has a place of its own, so that none is lost to another while a reader is slow;
//! states only become newer; where listeners move belongs to the state that it was told after, and goes with it.

use super::message::{Attach, News, Relayed};

/// The last news of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bulletin {
    state: Option<Relayed>,
    attach: Option<Attach>,
}

impl Bulletin {
    /// Puts news up; says whether it is any. A state of no newer version is none.
    pub fn post(&mut self, news: News) -> bool {
        match news {
            News::State(state) => {
                if self.state.as_ref().is_some_and(|known| known.version >= state.version) {
                    return false;
                }
                (self.state, self.attach) = (Some(state), None);
            }
            News::Attach(attach) => {
                if self.attach.as_ref() == Some(&attach) {
                    return false;
                }
                self.attach = Some(attach);
            }
        }
        true
    }

    /// The state that is put up.
    pub fn state(&self) -> Option<&Relayed> {
        self.state.as_ref()
    }

    /// What somebody has still to be told who was told `told`, in the order in which it became true.
    pub(super) fn since(&self, told: &Self) -> impl Iterator<Item = News> {
        let state = self.state.clone().filter(|state| told.state.as_ref() != Some(state));
        let attach = self.attach.clone();
        let attach = attach.filter(|attach| state.is_some() || told.attach.as_ref() != Some(attach));
        state.map(News::State).into_iter().chain(attach.map(News::Attach))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::topology::{Addr, Epoch, NodeId, RunId, ShardId};

    fn state(version: i32) -> News {
        News::State(Relayed {
            shard: ShardId::from("s1"),
            version,
            state: Bytes::from_static(b"{}"),
        })
    }

    fn attach(epoch: u64) -> News {
        News::Attach(Attach {
            shard: ShardId::from("s1"),
            epoch: Epoch(epoch),
            node: NodeId::from("b"),
            addr: Addr::new("127.0.0.1", 1),
            run_id: RunId::from("b1"),
            course: None,
        })
    }

    fn told(bulletin: &Bulletin, before: &Bulletin) -> Vec<News> {
        bulletin.since(before).collect()
    }

    #[test]
    fn a_slow_reader_is_told_both_in_order_and_once() {
        let mut bulletin = Bulletin::default();
        assert!(bulletin.post(state(1)) && bulletin.post(attach(2)));
        assert_eq!(told(&bulletin, &Bulletin::default()), [state(1), attach(2)]);
        assert_eq!(told(&bulletin, &bulletin.clone()), []);
        assert!(!bulletin.post(attach(2)) && !bulletin.post(state(1)));
        let before = bulletin.clone();
        assert!(bulletin.post(attach(3)));
        assert_eq!(told(&bulletin, &before), [attach(3)]);
    }

    #[test]
    fn a_newer_state_ends_what_was_said_before_it() {
        let mut bulletin = Bulletin::default();
        assert!(bulletin.post(state(4)) && bulletin.post(attach(2)) && bulletin.post(state(5)));
        assert_eq!(told(&bulletin, &Bulletin::default()), [state(5)]);
        assert!(!bulletin.post(state(4)), "an older state is no news");
        assert!(bulletin.post(attach(2)), "the same again in the next course");
        assert_eq!(told(&bulletin, &Bulletin::default()), [state(5), attach(2)]);
    }
}
