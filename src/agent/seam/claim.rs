//! Which life of our Redis this agent may work on.
//!
//! Owns: the two ends of that question: the host says which life answers, `rivals` grants it. Refuses: deciding. Invariant: a
//! life that is not granted is not touched, and the machine does not hear of it; one that was granted stays so.

use std::sync::Arc;

use tokio::sync::watch;

use crate::topology::RunId;

/// The host's end; clones are the same one.
#[derive(Clone, Debug)]
pub struct Claim {
    seen: Arc<watch::Sender<Option<RunId>>>,
    /// None: there is nobody to ask.
    granted: Option<watch::Receiver<Option<RunId>>>,
}

/// The other end.
#[derive(Debug)]
pub struct Grant {
    /// The life that answers.
    pub(super) seen: watch::Receiver<Option<RunId>>,
    /// The last one granted.
    pub(super) granted: watch::Sender<Option<RunId>>,
}

/// Both ends; nothing is granted yet.
pub fn claim() -> (Claim, Grant) {
    let (tell, seen) = watch::channel(None);
    let (granted, told) = watch::channel(None);
    let claim = Claim {
        seen: Arc::new(tell),
        granted: Some(told),
    };
    (claim, Grant { seen, granted })
}

impl Claim {
    /// To a Redis that nobody else can have: every life is granted.
    pub fn unrivalled() -> Self {
        Self {
            seen: Arc::new(watch::channel(None).0),
            granted: None,
        }
    }

    /// This life answers.
    pub(in crate::agent) fn see(&self, life: &RunId) {
        self.seen.send_if_modified(|seen| {
            let news = seen.as_ref() != Some(life);
            if news {
                *seen = Some(life.clone());
            }
            news
        });
    }

    /// Whether this life is granted.
    pub(in crate::agent) fn holds(&self, life: &RunId) -> bool {
        let granted = self.granted.as_ref();
        granted.is_none_or(|granted| granted.borrow().as_ref() == Some(life))
    }

    /// Waits for a grant that was not waited for before. May be dropped at any point.
    pub(in crate::agent) async fn granted(&mut self) {
        let changed = match &mut self.granted {
            Some(granted) => granted.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending().await
        }
    }
}

impl Grant {
    /// Waits until another life answers. May be dropped at any point.
    pub(super) async fn another(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
