//! The admin port: is it alive, is it ready, what does it know, what has it counted.
//!
//! Owns: the pages and their form. Refuses: knowing where the answers come from: they are closures of whoever serves.
//! Invariant: a page answers at once from what is known; none of them asks Redis or ZooKeeper.

mod metrics;
mod picture;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::topology::Snapshot;

pub use metrics::{Kind, Metric};

/// Whether clients can be served: if not, why.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// The topology as it is routed by; none before the first.
pub type Topology = Arc<dyn Fn() -> Option<Arc<Snapshot>> + Send + Sync>;
/// What was counted.
pub type Metrics = Arc<dyn Fn() -> Vec<Metric> + Send + Sync>;

/// What the pages show. A page nobody feeds does not exist.
#[derive(Clone, Default)]
pub struct Pages {
    /// `/readyz`.
    pub ready: Option<Ready>,
    /// `/topology`.
    pub topology: Option<Topology>,
    /// `/metrics`.
    pub metrics: Option<Metrics>,
}

/// Answers on `listener` until the task is dropped. `/healthz` is always there.
pub async fn serve(listener: TcpListener, pages: Pages) -> io::Result<()> {
    axum::serve(listener, router(pages)).await
}

fn router(pages: Pages) -> Router {
    let mut router = Router::new().route("/healthz", get(|| async { "ok\n" }));
    if let Some(ready) = pages.ready {
        router = router.route("/readyz", get(async move || answer_ready(&ready)));
    }
    if let Some(topology) = pages.topology {
        router = router.route("/topology", get(async move || answer_topology(&topology)));
    }
    if let Some(metrics) = pages.metrics {
        let page = async move || ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&metrics()));
        router = router.route("/metrics", get(page));
    }
    router
}

fn answer_ready(ready: &Ready) -> Response {
    match ready() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn answer_topology(topology: &Topology) -> Response {
    match topology().map(|snapshot| picture::json(&snapshot)) {
        Some(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no topology is known yet\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn page(pages: Pages, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, pages));
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn only_pages_that_are_fed_exist() {
        assert!(page(Pages::default(), "/healthz").await.contains("200 OK"));
        for path in ["/readyz", "/topology", "/metrics", "/"] {
            assert!(page(Pages::default(), path).await.contains("404 Not Found"), "{path}");
        }
    }

    #[tokio::test]
    async fn who_is_not_ready_says_why() {
        let ready = |answer: Result<(), String>| Pages {
            ready: Some(Arc::new(move || answer.clone())),
            topology: Some(Arc::new(|| None)),
            ..Pages::default()
        };
        assert!(page(ready(Ok(())), "/readyz").await.contains("200 OK"));
        let waits = page(ready(Err("shard s1 has no master".to_owned())), "/readyz").await;
        assert!(
            waits.contains("503") && waits.ends_with("shard s1 has no master\n"),
            "{waits}"
        );
        assert!(
            page(ready(Ok(())), "/topology")
                .await
                .contains("no topology is known yet")
        );
    }
}
