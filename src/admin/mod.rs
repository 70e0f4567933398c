//! The admin port: is it alive.

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

/// Answers `/healthz` on `listener` until the task is dropped.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let pages = Router::new().route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, pages).await
}
