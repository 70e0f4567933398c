//! The admin port: is it alive, and is it ready.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::proxy::View;

/// Answers on `listener` until the task is dropped.
pub async fn serve(listener: TcpListener, view: View) -> std::io::Result<()> {
    let ready = move || async move {
        match view.ready() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        }
    };
    let pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    axum::serve(listener, pages).await
}
