//! What each stage of the data path costs: `cargo bench --bench stages`.
//!
//! Owns fixed inputs, nothing random: two runs differ by the machine's noise only. Beside our framing stands
//! redis-protocol's cheapest decoder (ranges, no copies) on the same bytes, so that their ratio is one run's. It keeps
//! nothing between calls: where bytes come in chunks it begins again with each, and that is part of what is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on fails")]

use std::sync::Arc;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use pointsman::command::{KeyPositions, Lookup, Table};
use pointsman::resp::{Args, Heed, ReplyScanner, RequestLimits, RequestScanner, Scan, Scanned, Span, Stop};
use pointsman::route::{FenceLog, Fences, Footprint};
use pointsman::topology::{ShardId, slot_of_key};
use redis_protocol::resp2::decode::decode_range;

#[allow(
    dead_code,
    unused_imports,
    reason = "the window is the proxy's own; only its shape is measured here"
)]
#[path = "../src/proxy/client/window.rs"]
mod window;

// What the window itself is made from.
#[allow(unused_imports, reason = "by the file's own paths")]
use pointsman::{route, topology};

/// Bytes of one read in the chunked cases.
const CHUNK_BYTES: usize = 16 * 1024;
/// Elements of the arrays that come in chunks.
const MANY: usize = 100_000;
/// Commands of one run in the cases that look at runs.
const RUN_COMMANDS: u32 = 16;

fn main() {
    divan::main();
}

/// A request as clients write it.
fn request<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        put_bulk(&mut bytes, arg.as_ref());
    }
    bytes
}

fn put_bulk(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(b"\r\n");
}

fn array(elements: usize) -> Vec<u8> {
    request(&vec!["element:00000042"; elements])
}

fn get() -> Vec<u8> {
    request(&["GET", "user:1000:name"])
}

fn set() -> Vec<u8> {
    request(&["SET", "user:1000:name", &"x".repeat(64)])
}

/// How much of `bytes` has arrived after each read.
fn arrivals(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let len = bytes.len();
    (1..=len.div_ceil(CHUNK_BYTES)).map(move |reads| (reads * CHUNK_BYTES).min(len))
}

#[divan::bench_group(sample_size = 100)]
mod requests {
    use super::*;

    fn ours(bencher: Bencher, bytes: &[u8]) {
        let (mut scanner, mut spans, limits) = (RequestScanner::default(), Vec::new(), RequestLimits::default());
        bencher.counter(BytesCount::of_slice(bytes)).bench_local(|| {
            let scan = scanner.scan(black_box(bytes), &mut spans, &limits);
            assert_eq!(scan, Ok(Scan::Frame(bytes.len())));
        });
    }

    fn theirs(bencher: Bencher, bytes: &[u8]) {
        bencher
            .counter(BytesCount::of_slice(bytes))
            .bench_local(|| decode_range(black_box(bytes)).unwrap().unwrap());
    }

    #[divan::bench]
    fn get_ours(bencher: Bencher) {
        ours(bencher, &get());
    }

    #[divan::bench]
    fn get_redis_protocol(bencher: Bencher) {
        theirs(bencher, &get());
    }

    #[divan::bench]
    fn set_64_bytes_ours(bencher: Bencher) {
        ours(bencher, &set());
    }

    #[divan::bench]
    fn set_64_bytes_redis_protocol(bencher: Bencher) {
        theirs(bencher, &set());
    }

    #[divan::bench]
    fn array_of_100_ours(bencher: Bencher) {
        ours(bencher, &array(100));
    }

    #[divan::bench]
    fn array_of_100_redis_protocol(bencher: Bencher) {
        theirs(bencher, &array(100));
    }

    #[divan::bench(sample_size = 1)]
    fn chunked_array_of_100_000_ours(bencher: Bencher) {
        let (bytes, limits) = (array(MANY), RequestLimits::default());
        let mut spans: Vec<Span> = Vec::new();
        bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
            let mut scanner = RequestScanner::default();
            let last = arrivals(&bytes)
                .map(|end| scanner.scan(black_box(&bytes[..end]), &mut spans, &limits).unwrap())
                .last();
            assert_eq!(last, Some(Scan::Frame(bytes.len())));
        });
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn chunked_array_of_100_000_redis_protocol(bencher: Bencher) {
        let bytes = array(MANY);
        bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
            let last = arrivals(&bytes).map(|end| decode_range(black_box(&bytes[..end])).unwrap());
            assert!(last.last().flatten().is_some());
        });
    }
}

#[divan::bench_group(sample_size = 100)]
mod replies {
    use super::*;

    fn short() -> Vec<u8> {
        b"$3\r\nabc\r\n".to_vec()
    }

    fn page() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_bulk(&mut bytes, &[b'x'; 4096]);
        bytes
    }

    fn ours(bencher: Bencher, bytes: &[u8]) {
        let mut scanner = ReplyScanner::default();
        let whole = Scanned {
            used: bytes.len(),
            replies: 1,
            stop: Stop::Starved,
        };
        bencher.counter(BytesCount::of_slice(bytes)).bench_local(|| {
            assert_eq!(scanner.scan(black_box(bytes), u32::MAX, Heed::Refusals), whole);
        });
    }

    fn theirs(bencher: Bencher, bytes: &[u8]) {
        bencher
            .counter(BytesCount::of_slice(bytes))
            .bench_local(|| decode_range(black_box(bytes)).unwrap().unwrap());
    }

    #[divan::bench]
    fn bulk_of_3_bytes_ours(bencher: Bencher) {
        ours(bencher, &short());
    }

    #[divan::bench]
    fn bulk_of_3_bytes_redis_protocol(bencher: Bencher) {
        theirs(bencher, &short());
    }

    #[divan::bench]
    fn bulk_of_4_kib_ours(bencher: Bencher) {
        ours(bencher, &page());
    }

    #[divan::bench]
    fn bulk_of_4_kib_redis_protocol(bencher: Bencher) {
        theirs(bencher, &page());
    }

    #[divan::bench]
    fn array_of_100_ours(bencher: Bencher) {
        ours(bencher, &array(100));
    }

    #[divan::bench]
    fn array_of_100_redis_protocol(bencher: Bencher) {
        theirs(bencher, &array(100));
    }

    #[divan::bench(sample_size = 1)]
    fn chunked_array_of_100_000_ours(bencher: Bencher) {
        let bytes = array(MANY);
        bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
            let mut scanner = ReplyScanner::default();
            let chunks = bytes.chunks(CHUNK_BYTES);
            let replies: u32 = chunks
                .map(|chunk| scanner.scan(black_box(chunk), u32::MAX, Heed::Refusals).replies)
                .sum();
            assert_eq!(replies, 1);
        });
    }

    #[divan::bench(sample_count = 5, sample_size = 1)]
    fn chunked_array_of_100_000_redis_protocol(bencher: Bencher) {
        let bytes = array(MANY);
        bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
            let last = arrivals(&bytes).map(|end| decode_range(black_box(&bytes[..end])).unwrap());
            assert!(last.last().flatten().is_some());
        });
    }
}

#[divan::bench_group(sample_size = 1000)]
mod commands {
    use super::*;

    /// Looks the command up and finds its first key, as a session does for each request.
    fn lookup_and_key(bencher: Bencher, bytes: &[u8]) {
        let (table, mut spans, mut keys) = (Table::builtin(), Vec::new(), KeyPositions::new());
        let scan = RequestScanner::default().scan(bytes, &mut spans, &RequestLimits::default());
        assert_eq!(scan, Ok(Scan::Frame(bytes.len())));
        let args = Args::new(bytes, &spans);
        bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
            let args = black_box(&args);
            let Lookup::Known(command) = table.lookup(args) else {
                panic!("an unknown command");
            };
            let at = match command.sole_key() {
                Some(at) => at as usize,
                None => {
                    command.keys(args, &mut keys).unwrap();
                    keys.keys().next().unwrap()
                }
            };
            args.get(at).unwrap().len()
        });
    }

    #[divan::bench]
    fn lookup_and_key_of_get(bencher: Bencher) {
        lookup_and_key(bencher, &get());
    }

    #[divan::bench]
    fn lookup_and_key_of_xreadgroup(bencher: Bencher) {
        let bytes = request(&[
            "xreadgroup",
            "GROUP",
            "g",
            "c",
            "COUNT",
            "10",
            "STREAMS",
            "stream:1",
            ">",
        ]);
        lookup_and_key(bencher, &bytes);
    }

    #[divan::bench]
    fn lookup_and_keys_of_mget_100(bencher: Bencher) {
        let keys = (0..100).map(|number| format!("user:{number:04}:name"));
        let words: Vec<String> = ["MGET".to_owned()].into_iter().chain(keys).collect();
        lookup_and_key(bencher, &request(&words));
    }

    #[divan::bench]
    fn slot_of_a_14_byte_key() -> u16 {
        slot_of_key(black_box(b"user:1000:name")).0
    }

    #[divan::bench]
    fn slot_of_a_hash_tag() -> u16 {
        slot_of_key(black_box(b"user:{1000}:name")).0
    }
}

#[divan::bench_group(sample_size = 1000)]
mod fences {
    use super::*;

    /// A run of writes is appended (its fences are raised) and answered (they are settled).
    fn raise_and_settle(bencher: Bencher, commands: u32) {
        let fences = Arc::new(Fences::new());
        let shard = fences.shard(&ShardId::from("s1"));
        let mut log = FenceLog::new(fences.clone(), shard);
        let mut footprint = Footprint::default();
        let keys: Vec<String> = (0..commands).map(|number| format!("user:{number:04}:name")).collect();
        bencher.counter(ItemsCount::new(commands)).bench_local(|| {
            footprint.clear();
            for (place, key) in (0..).zip(&keys) {
                footprint.writes_key(&fences, place, black_box(key).as_bytes());
            }
            log.appended(commands, &footprint);
            log.answered(commands);
            assert_eq!(log.held(), 0);
        });
    }

    #[divan::bench]
    fn raise_and_settle_one_write(bencher: Bencher) {
        raise_and_settle(bencher, 1);
    }

    #[divan::bench]
    fn raise_and_settle_a_run_of_16(bencher: Bencher) {
        raise_and_settle(bencher, RUN_COMMANDS);
    }

    #[divan::bench]
    fn what_a_read_needs(bencher: Bencher) {
        let fences = Fences::new();
        bencher.bench_local(|| fences.need_of(black_box(b"user:1000:name")));
    }
}

#[divan::bench_group(sample_size = 1000)]
mod windows {
    use super::window::Window;
    use super::*;

    const REPLY: &[u8] = b"$3\r\nabc\r\n";

    fn reserve_and_fill(bencher: Bencher, commands: u32) {
        let (mut window, mut out) = (Window::default(), Vec::new());
        bencher.counter(ItemsCount::new(commands)).bench_local(|| {
            let run = window.reserve(black_box(1), commands);
            for _ in 0..commands {
                window.fill(run, black_box(REPLY), 1, &mut out);
            }
            assert_eq!(window.unanswered(), 0);
            out.clear();
        });
    }

    #[divan::bench]
    fn one_command_reserved_and_filled(bencher: Bencher) {
        reserve_and_fill(bencher, 1);
    }

    #[divan::bench]
    fn a_run_of_16_reserved_and_filled_one_by_one(bencher: Bencher) {
        reserve_and_fill(bencher, RUN_COMMANDS);
    }

    /// The second lane answers first: its reply is kept back and released behind the first's.
    #[divan::bench]
    fn two_lanes_filled_out_of_order(bencher: Bencher) {
        let (mut window, mut out) = (Window::default(), Vec::new());
        bencher.counter(ItemsCount::new(2u32)).bench_local(|| {
            let (first, second) = (window.reserve(black_box(1), 1), window.reserve(black_box(2), 1));
            window.fill(second, black_box(REPLY), 1, &mut out);
            window.fill(first, black_box(REPLY), 1, &mut out);
            assert_eq!(out.len(), 2 * REPLY.len());
            out.clear();
        });
    }
}
