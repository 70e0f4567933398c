//! The peer protocol over real sockets: handshake, requests in order, news, and whatever is none of that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman::peer::{Bulletin, Client, FRAME_MAX, Inbound, Kind, News, PeerError, Relayed, Request, serve};
use pointsman::topology::{Addr, Epoch, ShardId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(5);

struct Agent {
    addr: Addr,
    requests: mpsc::Receiver<Inbound>,
    news: watch::Sender<Bulletin>,
    stop: CancellationToken,
}

impl Agent {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
        let (to_agent, requests) = mpsc::channel(4);
        let (news, heard) = watch::channel(Bulletin::default());
        let stop = CancellationToken::new();
        let secret: Arc<[u8]> = Arc::from(b"secret".as_slice());
        tokio::spawn(serve(listener, secret, to_agent, heard, stop.clone()));
        Self {
            addr,
            requests,
            news,
            stop,
        }
    }

    async fn connect(&self, secret: &[u8]) -> Result<Client, PeerError> {
        Client::connect(&self.addr, Kind::Proxy, "proxy-1", secret).await
    }

    /// Sends raw bytes and reads until the agent closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect((self.addr.host(), self.addr.port())).await.unwrap();
        // It may close before all is written.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn relayed(version: i32) -> News {
    News::State(Relayed {
        shard: ShardId::from("s1"),
        version,
        state: Bytes::from_static(b"{}"),
    })
}

#[tokio::test]
async fn requests_are_answered_and_news_is_told_between_them() {
    let mut agent = Agent::start().await;
    agent.news.send_if_modified(|told| told.post(relayed(1)));
    let mut client = agent.connect(b"secret").await.unwrap();
    assert_eq!(
        client.hear().await.unwrap(),
        relayed(1),
        "what was known before it connected"
    );
    let answering = tokio::spawn(async move {
        let inbound = agent.requests.recv().await.unwrap();
        assert_eq!((inbound.kind, inbound.id.as_str()), (Kind::Proxy, "proxy-1"));
        assert_eq!(inbound.request, Request::Drained(ShardId::from("s1"), Epoch(3), None));
        agent.news.send_if_modified(|told| told.post(relayed(2)));
        tokio::task::yield_now().await;
        inbound.reply.send(Bytes::from_static(b"noted")).unwrap();
        agent
    });
    let reply = client
        .ask(&Request::Drained(ShardId::from("s1"), Epoch(3), None), LIMIT)
        .await
        .unwrap();
    assert_eq!(reply, "noted");
    assert_eq!(client.hear().await.unwrap(), relayed(2));
    let agent = answering.await.unwrap();
    agent.stop.cancel();
    assert!(
        matches!(client.hear().await, Err(PeerError::Lost(_))),
        "the agent ended"
    );
}

#[tokio::test]
async fn who_does_not_know_the_secret_is_not_heard_and_is_told_nothing() {
    let mut agent = Agent::start().await;
    agent.news.send_if_modified(|told| told.post(relayed(1)));
    assert!(matches!(agent.connect(b"wrong").await, Err(PeerError::Stranger(_))));
    let hello = b"*5\r\n$5\r\nHELLO\r\n$1\r\n1\r\n$5\r\nproxy\r\n$1\r\nx\r\n$1\r\nn\r\n";
    let auth = b"*2\r\n$4\r\nAUTH\r\n$4\r\nabcd\r\n*1\r\n$5\r\nSTATE\r\n";
    let told = agent.raw(&[hello.as_slice(), auth].concat()).await;
    assert!(
        told.ends_with("-ERR wrong cluster secret\r\n") && !told.contains("RELAY"),
        "{told}"
    );
    assert!(agent.requests.try_recv().is_err());
}

#[tokio::test]
async fn nonsense_is_refused_and_closed() {
    let agent = Agent::start().await;
    assert!(agent.raw(b"*1\r\n$5\r\nSTATE\r\n").await.contains("HELLO first"));
    assert!(
        agent
            .raw(b"*5\r\n$5\r\nHELLO\r\n$1\r\n0\r\n$5\r\nproxy\r\n$1\r\nx\r\n$1\r\nn\r\n")
            .await
            .contains("version 1")
    );
    assert!(agent.raw(b"GET / HTTP/1.1\r\n\r\n").await.len() < 200);
    let mut endless = format!("*1\r\n${}\r\n", 2 * FRAME_MAX).into_bytes();
    endless.resize(endless.len() + FRAME_MAX + 1, b'x');
    assert!(!agent.raw(&endless).await.starts_with('*'));
    // Followed down, these would take more stack than a thread has.
    assert!(!agent.raw(&b"*1\r\n".repeat(FRAME_MAX / 4 - 1)).await.starts_with('*'));
    let mut deep = b"*1\r\n".repeat(FRAME_MAX / 4 - 2);
    deep.extend_from_slice(b"$1\r\nx\r\n");
    assert!(!agent.raw(&deep).await.starts_with('*'));
    let hello = b"*5\r\n$5\r\nHELLO\r\n$1\r\n0\r\n$5\r\nproxy\r\n$1\r\nx\r\n$1\r\nn\r\n";
    assert!(agent.raw(hello).await.contains("version 1"), "it is still there");
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_given_up() {
    let mut agent = Agent::start().await;
    let mut client = agent.connect(b"secret").await.unwrap();
    assert!(matches!(
        client.ask(&Request::State, Duration::from_millis(50)).await,
        Err(PeerError::Timeout)
    ));
    let inbound = agent.requests.recv().await.unwrap();
    assert!(inbound.reply.send(Bytes::new()).is_ok());
    let mut client = agent.connect(b"secret").await.unwrap();
    let asking = tokio::spawn(async move { client.ask(&Request::State, LIMIT).await });
    drop(agent.requests.recv().await.unwrap());
    assert!(
        matches!(asking.await.unwrap(), Err(PeerError::Says(_))),
        "an agent that has no reply says so"
    );
}
