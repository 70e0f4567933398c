//! Frames too long to be shown at once.

use super::{Asked, FeedLine, Flow, Meaning, Shown, Trouble};

impl FeedLine {
    pub(super) fn begin_flow(&mut self, part: &[u8], show: &mut impl FnMut(Shown)) -> Result<(), Trouble> {
        match (self.meaning(part), self.asked.front().map(|entry| &entry.asked)) {
            (Meaning::Message, _) => {
                self.flow = Flow::Push;
                show(Shown::Begins);
            }
            (Meaning::Reply, Some(Asked::Plain(_))) => {
                self.flow = Flow::Reply;
                self.part(part, show);
                return Ok(());
            }
            (Meaning::Reply | Meaning::Confirms(_), _) => return Err(Trouble::Poisoned),
        }
        show(Shown::Push(part));
        Ok(())
    }

    pub(super) fn flow_on(&mut self, part: &[u8], whole: bool, show: &mut impl FnMut(Shown)) {
        match (self.flow, whole) {
            (Flow::Reply, true) => {
                self.answered(part, show);
                self.flow = Flow::None;
            }
            (Flow::Push, true) => {
                show(Shown::Push(part));
                show(Shown::Ends);
                self.flow = Flow::None;
            }
            (Flow::Reply, false) => self.part(part, show),
            (Flow::None | Flow::Push, _) => show(Shown::Push(part)),
        }
    }

    /// Bytes of the reply to the oldest request, which do not complete it.
    fn part(&self, bytes: &[u8], show: &mut impl FnMut(Shown)) {
        match self.asked.front().and_then(|entry| entry.run) {
            Some(run) => show(Shown::Part(run, bytes)),
            None => show(Shown::Push(bytes)),
        }
    }
}
