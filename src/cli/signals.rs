//! SIGINT and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;

/// A token that the first SIGINT or SIGTERM cancels.
pub fn shutdown() -> Result<CancellationToken, Failure> {
    twice().map(|(shutdown, _)| shutdown)
}

/// The same, and a token that the second one cancels: for those who take their time to end.
pub fn twice() -> Result<(CancellationToken, CancellationToken), Failure> {
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    watch([first.clone(), second.clone()])
        .map_err(|error| Failure::Failed(format!("cannot listen to signals: {error}")))?;
    Ok((first, second))
}

fn watch(tokens: [CancellationToken; 2]) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        for (token, sentence) in tokens.into_iter().zip(["asked to end", "asked to end at once"]) {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            tracing::info!("{sentence}");
            token.cancel();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}
