//! SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// A token that the first SIGINT or SIGTERM cancels.
pub fn shutdown() -> Result<CancellationToken, Failure> {
    let shutdown = CancellationToken::new();
    watch(shutdown.clone()).map_err(|error| Failure::Failed(format!("cannot listen to signals: {error}")))?;
    Ok(shutdown)
}

fn watch(shutdown: CancellationToken) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        tracing::info!("asked to end");
        shutdown.cancel();
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}
