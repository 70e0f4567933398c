//! A wire that is slow: what goes in comes out later, in both directions.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use pointsman::clock;

use super::free_port;

/// Pieces on their way; past that the sender waits.
const ON_THE_WAY_MAX: usize = 1024;

/// Passes everything on after a while. Its threads end when the connections do.
pub struct Slow {
    port: u16,
}

impl Slow {
    /// A wire to the server at `addr` on which everything takes `delay` longer.
    #[track_caller]
    pub fn start(addr: &str, delay: Duration) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let addr = addr.to_owned();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&addr)) else {
                    continue;
                };
                let (back, forth) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                pass(client, server, delay);
                pass(forth, back, delay);
            }
        });
        Self { port }
    }

    /// Where it listens.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, on_the_way) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_WAY_MAX);
    to.set_nodelay(true).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if sender.send((clock::now() + delay, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        while let Ok((due, bytes)) = on_the_way.recv() {
            thread::sleep(due.saturating_duration_since(clock::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _gone = to.shutdown(Shutdown::Both);
    });
}
