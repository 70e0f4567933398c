//! Waking one task of the same thread, once per turn however often it is asked for.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// A wake-up that is remembered until the task takes it.
#[derive(Debug, Default)]
pub struct Wake {
    asked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Wake {
    /// Asks the task to run soon; after the first time in a turn this costs a load.
    pub fn wake(&self) {
        if self.asked.replace(true) {
            return;
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Called by the task at each poll: remembers whom to wake and forgets that it was asked.
    pub fn listen(&self, context: &Context<'_>) {
        self.asked.set(false);
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }
}
