//! A wire between the proxy and a Redis that can be cut into single bytes, and tapped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::free_port;

/// Passes everything on, replies byte by byte. Its threads end when the connections do.
pub struct Relay {
    port: u16,
    taps: Arc<Mutex<Vec<Tap>>>,
}

struct Tap {
    server: TcpStream,
    /// Bytes of replies that are not passed on.
    swallow: Arc<AtomicUsize>,
}

impl Relay {
    /// A wire to the server at `addr`.
    #[track_caller]
    pub fn start(addr: &str) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let taps: Arc<Mutex<Vec<Tap>>> = Arc::default();
        let (addr, kept) = (addr.to_owned(), taps.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&addr)) else {
                    continue;
                };
                client.set_nodelay(true).unwrap();
                kept.lock().unwrap().push(wire(client, server));
            }
        });
        Self { port, taps }
    }

    /// Where it listens.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends `request` on every connection as if the proxy had, and keeps `reply_bytes` of the answer from it. Only
    /// while nothing is in flight.
    pub fn inject(&self, request: &[u8], reply_bytes: usize) {
        let mut taps = self.taps.lock().unwrap();
        taps.retain(Tap::is_alive);
        for tap in taps.iter_mut() {
            tap.swallow.fetch_add(reply_bytes, Ordering::SeqCst);
            let _gone = tap.server.write_all(request);
        }
    }

    /// How many bytes of injected answers are still awaited on connections that live.
    pub fn awaited(&self) -> usize {
        let taps = self.taps.lock().unwrap();
        let alive = taps.iter().filter(|tap| tap.is_alive());
        alive.map(|tap| tap.swallow.load(Ordering::SeqCst)).sum()
    }
}

impl Tap {
    /// Whether the thread that passes replies on still holds its share.
    fn is_alive(&self) -> bool {
        Arc::strong_count(&self.swallow) > 1
    }
}

fn wire(mut client: TcpStream, mut server: TcpStream) -> Tap {
    let swallow = Arc::new(AtomicUsize::new(0));
    let tap = Tap {
        server: server.try_clone().unwrap(),
        swallow: swallow.clone(),
    };
    let (mut to_client, mut from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _end = std::io::copy(&mut client, &mut server);
        let _gone = server.shutdown(std::net::Shutdown::Both);
    });
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from_server.read(&mut bytes) {
            for byte in &bytes[..count] {
                let kept = swallow.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if kept.is_err() && to_client.write_all(&[*byte]).is_err() {
                    break;
                }
            }
        }
        swallow.store(0, Ordering::SeqCst);
        let _gone = to_client.shutdown(std::net::Shutdown::Both);
    });
    tap
}
