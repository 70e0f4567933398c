//! What hears moves to the next master before it is one (rule B8).

use std::rc::Rc;

use crate::peer::Attach;
use crate::proxy::shard::Shard;
use crate::proxy::worker::Worker;

/// Brings this worker's subscribers of a shard to the node that is about to be its master; done once all of them hear it.
pub async fn attach(_worker: &Rc<Worker>, _shard: &Rc<Shard>, _attach: &Attach) {}
