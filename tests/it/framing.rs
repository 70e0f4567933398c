//! Framing against redis-protocol, against every split of the bytes, and against a committed corpus of nasty input.
//!
//! A file of `tests/corpus` says in its name's end what comes of it: a number of requests or replies, or that it is
//! none (`error`, `malformed`). What Redis itself says to the nasty requests is asked as well, except about those that
//! begin with `ours-`: from 7.0 on Redis waits for two billion arguments where we hold to the limit of older ones, and
//! it never finds the end of a line that has a NUL in it.

use std::fs;
use std::path::Path;

use pointsman::resp::{Args, Heed, ReplyScanner, RequestLimits, RequestScanner, Scan};
use proptest::prelude::*;
use redis_protocol::resp2::types::OwnedFrame as Frame2;
use redis_protocol::resp3::types::{OwnedFrame as Frame3, VerbatimStringFormat};
use redis_protocol::{resp2, resp3};

use crate::fuzzing::bodies::replies::{Replies, read as read_replies};
use crate::fuzzing::bodies::requests::{Requests, read as read_requests};
use crate::support::{Client, Pointsman, Redis, START_DEADLINE, free_port};

fn requests(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> Requests {
    read_requests(bytes, cuts, &RequestLimits::default())
}

fn replies(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> Replies {
    read_replies(bytes, cuts, Heed::Nothing)
}

/// The files of one folder of the corpus: name, what comes of it, bytes.
fn corpus(folder: &str) -> Vec<(String, String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut files: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let file = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let (_, outcome) = name.rsplit_once('.').expect("the name's end says what comes of it");
        let outcome = outcome.to_owned();
        (name, outcome, fs::read(path).unwrap())
    };
    files.into_iter().map(file).collect()
}

#[test]
fn nasty_requests_of_the_corpus_come_to_what_their_names_say_at_any_split() {
    for (name, outcome, bytes) in corpus("requests") {
        let whole = requests(&bytes, []);
        match outcome.as_str() {
            "error" => assert!(whole.error.is_some(), "{name}: {whole:?}"),
            count => {
                assert_eq!(
                    (whole.found.len().to_string().as_str(), whole.error),
                    (count, None),
                    "{name}"
                );
            }
        }
        assert_eq!(requests(&bytes, 0..bytes.len()), whole, "{name}, byte by byte");
        for cut in 0..bytes.len() {
            assert_eq!(requests(&bytes, [cut]), whole, "{name}, cut at {cut}");
        }
    }
}

#[test]
fn nasty_replies_of_the_corpus_come_to_what_their_names_say_at_any_split() {
    for (name, outcome, bytes) in corpus("replies") {
        let whole = replies(&bytes, []);
        match outcome.as_str() {
            "malformed" => assert!(whole.malformed, "{name}: {whole:?}"),
            count => {
                assert_eq!(
                    (whole.count.to_string().as_str(), whole.malformed),
                    (count, false),
                    "{name}"
                );
            }
        }
        assert_eq!(replies(&bytes, 0..bytes.len()), whole, "{name}, byte by byte");
        for cut in (0..bytes.len()).step_by(bytes.len().div_ceil(200)) {
            assert_eq!(replies(&bytes, [cut]), whole, "{name}, cut at {cut}");
        }
    }
}

#[test]
fn nasty_requests_are_answered_through_the_proxy_as_redis_answers_them() {
    let redis = Redis::start(&[]);
    let listen = format!("127.0.0.1:{}", free_port());
    let mut proxy = Pointsman::start(&[
        "proxy",
        "--listen",
        &listen,
        "--master",
        &redis.addr(),
        "--workers",
        "1",
    ]);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    for (name, outcome, mut bytes) in corpus("requests") {
        if name.starts_with("ours-") {
            continue;
        }
        // Both close after an error; where all is well QUIT makes them.
        if outcome != "error" {
            if requests(&bytes, []).rest > 0 {
                continue;
            }
            bytes.extend_from_slice(b"*1\r\n$4\r\nQUIT\r\n");
        }
        let ours = said(&listen, &bytes);
        assert_eq!(ours, said(&redis.addr(), &bytes), "{name}");
        assert!(!ours.is_empty(), "{name}");
    }
    proxy.assert_no_undeclared_warnings(&[]);
}

/// Everything a server says to `bytes` until it closes.
fn said(addr: &str, bytes: &[u8]) -> String {
    let mut client = Client::connect(addr);
    client.send(bytes);
    let mut replies = Vec::new();
    // A close with unread bytes behind it is a reset: what was said before it counts.
    while let Ok(reply) = client.try_read_reply() {
        replies.push(format!("{reply:?}"));
    }
    replies.join("\n")
}

#[test]
fn counts_that_multiply_past_any_memory_are_malformed() {
    let header = b"*1099511627776\r\n";
    assert!(!replies(header, []).malformed);
    assert!(replies(&header.repeat(65_537), []).malformed);
}

fn any_word() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..24)
}

/// Bytes that look like RESP often enough to get somewhere.
fn near_resp() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (prop::sample::select(&b"*$:+-_#,(=!%~|>"[..]), -2i64..12).prop_map(|(kind, count)| format!(
            "{}{count}\r\n",
            char::from(kind)
        )
        .into_bytes()),
        any_word().prop_map(|word| [format!("${}\r\n", word.len()).as_bytes(), &word, b"\r\n"].concat()),
        prop::collection::vec(any::<u8>(), 0..4),
        Just(b"\r\n".to_vec()),
        Just(b"PING\r\n".to_vec()),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn sorted_cuts(cuts: &[prop::sample::Index], len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..10)
}

/// A request as redis-protocol writes it.
fn their_request(words: &[Vec<u8>]) -> Vec<u8> {
    let words = words.iter().cloned().map(Frame2::BulkString).collect();
    put2(&Frame2::Array(words))
}

fn put2(frame: &Frame2) -> Vec<u8> {
    use resp2::types::Resp2Frame as _;
    let mut bytes = vec![0; frame.encode_len(false)];
    let used = resp2::encode::encode(&mut bytes, frame, false).unwrap();
    assert_eq!(used, bytes.len());
    bytes
}

fn put3(frame: &Frame3) -> Vec<u8> {
    use resp3::types::Resp3Frame as _;
    let mut bytes = vec![0; frame.encode_len(false)];
    let used = resp3::encode::complete::encode(&mut bytes, frame, false).unwrap();
    assert_eq!(used, bytes.len());
    bytes
}

/// The arguments of what redis-protocol takes for a request: a non-empty array of bulk strings.
fn their_words(frame: Frame2) -> Option<Vec<Vec<u8>>> {
    let Frame2::Array(items) = frame else { return None };
    let word = |item| match item {
        Frame2::BulkString(word) => Some(word),
        _ => None,
    };
    let words: Option<Vec<_>> = items.into_iter().map(word).collect();
    words.filter(|words| !words.is_empty())
}

fn line() -> impl Strategy<Value = String> {
    "[ -~]{0,20}"
}

fn frame2() -> impl Strategy<Value = Frame2> {
    let leaf = prop_oneof![
        line().prop_map(|text| Frame2::SimpleString(text.into_bytes())),
        line().prop_map(Frame2::Error),
        any::<i64>().prop_map(Frame2::Integer),
        any_word().prop_map(Frame2::BulkString),
        Just(Frame2::Null),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop::collection::vec(inner, 0..5).prop_map(Frame2::Array)
    })
}

/// A leaf of RESP3 with or without an attribute of one pair.
fn leaf3() -> impl Strategy<Value = Frame3> {
    let attributes = || {
        prop::option::weighted(
            0.2,
            line().prop_map(|key| [(blob(key.into_bytes()), Frame3::Null)].into()),
        )
    };
    prop_oneof![
        (any_word(), attributes()).prop_map(|(data, attributes)| Frame3::BlobString { data, attributes }),
        (any_word(), attributes()).prop_map(|(data, attributes)| Frame3::BlobError { data, attributes }),
        (line(), attributes()).prop_map(|(text, attributes)| Frame3::SimpleString {
            data: text.into_bytes(),
            attributes
        }),
        (line(), attributes()).prop_map(|(data, attributes)| Frame3::SimpleError { data, attributes }),
        (any::<bool>(), attributes()).prop_map(|(data, attributes)| Frame3::Boolean { data, attributes }),
        (any::<i64>(), attributes()).prop_map(|(data, attributes)| Frame3::Number { data, attributes }),
        (any::<f64>(), attributes()).prop_map(|(data, attributes)| Frame3::Double { data, attributes }),
        ("[1-9][0-9]{0,40}", attributes()).prop_map(|(digits, attributes)| Frame3::BigNumber {
            data: digits.into_bytes(),
            attributes
        }),
        (any_word(), attributes()).prop_map(|(data, attributes)| Frame3::VerbatimString {
            data,
            format: VerbatimStringFormat::Text,
            attributes
        }),
        Just(Frame3::Null),
    ]
}

fn blob(data: Vec<u8>) -> Frame3 {
    Frame3::BlobString { data, attributes: None }
}

fn frame3() -> impl Strategy<Value = Frame3> {
    leaf3().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|data| Frame3::Array { data, attributes: None }),
            prop::collection::hash_map(any_word().prop_map(blob), inner, 0..4).prop_map(|pairs| Frame3::Map {
                data: pairs.into_iter().collect(),
                attributes: None
            }),
            prop::collection::hash_set(any_word().prop_map(blob), 0..4).prop_map(|items| Frame3::Set {
                data: items.into_iter().collect(),
                attributes: None
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_at_any_split_give_the_same_requests_and_the_same_error(bytes in near_resp(), cuts in cuts()) {
        let cuts = sorted_cuts(&cuts, bytes.len());
        prop_assert_eq!(requests(&bytes, cuts), requests(&bytes, []));
    }

    #[test]
    fn any_bytes_at_any_split_give_the_same_replies(bytes in near_resp(), cuts in cuts()) {
        let cuts = sorted_cuts(&cuts, bytes.len());
        let whole = replies(&bytes, []);
        prop_assert!(whole.used <= bytes.len());
        prop_assert!(whole.malformed || whole.used == bytes.len());
        prop_assert_eq!(replies(&bytes, cuts), whole);
    }

    #[test]
    fn what_redis_protocol_writes_as_a_request_is_read_as_that_request(pipeline in prop::collection::vec(prop::collection::vec(any_word(), 1..6), 1..6)) {
        let bytes: Vec<u8> = pipeline.iter().flat_map(|words| their_request(words)).collect();
        prop_assert_eq!(requests(&bytes, []), Requests { found: pipeline, ..Requests::default() });
    }

    #[test]
    fn what_is_a_request_to_redis_protocol_is_the_same_to_us(bytes in near_resp()) {
        if let Ok(Some((frame, used))) = resp2::decode::decode(&bytes)
            && let Some(words) = their_words(frame)
            // Their numbers may have a plus or leading zeros, Redis' may not.
            && their_request(&words) == bytes[..used]
        {
            prop_assert_eq!(requests(&bytes[..used], []), Requests { found: vec![words], ..Requests::default() });
        }
    }

    #[test]
    fn what_is_a_plain_request_to_us_is_the_same_to_redis_protocol(bytes in near_resp()) {
        let (mut spans, limits) = (Vec::new(), RequestLimits::default());
        if let Ok(Scan::Frame(len)) = RequestScanner::default().scan(&bytes, &mut spans, &limits) {
            let ours: Vec<_> = Args::new(&bytes[..len], &spans).iter().map(<[u8]>::to_vec).collect();
            // Redis does not look at line ends, they do.
            if their_request(&ours) == bytes[..len] {
                let (frame, used) = resp2::decode::decode(&bytes).unwrap().unwrap();
                prop_assert_eq!((their_words(frame), used), (Some(ours), len));
            }
        }
    }

    #[test]
    fn replies_that_redis_protocol_writes_in_resp2_are_counted(frames in prop::collection::vec(frame2(), 1..6), cuts in cuts()) {
        let bytes: Vec<u8> = frames.iter().flat_map(put2).collect();
        let cuts = sorted_cuts(&cuts, bytes.len());
        let expected = Replies { count: u32::try_from(frames.len()).unwrap(), used: bytes.len(), malformed: false };
        prop_assert_eq!(replies(&bytes, cuts), expected);
    }

    #[test]
    fn replies_that_redis_protocol_writes_in_resp3_are_counted(frames in prop::collection::vec(frame3(), 1..6), cuts in cuts()) {
        let bytes: Vec<u8> = frames.iter().flat_map(put3).collect();
        let cuts = sorted_cuts(&cuts, bytes.len());
        let expected = Replies { count: u32::try_from(frames.len()).unwrap(), used: bytes.len(), malformed: false };
        prop_assert_eq!(replies(&bytes, cuts), expected);
    }

    #[test]
    fn what_is_a_reply_to_redis_protocol_ends_there_for_us(bytes in near_resp()) {
        if let Ok(Some((_, used))) = resp2::decode::decode(&bytes) {
            let scanned = ReplyScanner::default().scan(&bytes, 1, Heed::Nothing);
            prop_assert_eq!((scanned.used, scanned.replies), (used, 1));
        }
    }

    #[test]
    fn what_is_a_reply_to_redis_protocol_in_resp3_ends_there_for_us(bytes in near_resp()) {
        // They take the end of a streamed aggregate for a reply, even where none began; servers send no such.
        let ends_stream = bytes.starts_with(b".") || bytes.windows(2).any(|pair| pair == b"\n.");
        // They count a push within a reply as one of its elements; Redis does not (rule A1).
        if !ends_stream
            && !bytes.contains(&b'>')
            && let Ok(Some((_, used))) = resp3::decode::complete::decode(&bytes)
        {
            let scanned = ReplyScanner::default().scan(&bytes, 1, Heed::Nothing);
            prop_assert_eq!((scanned.used, scanned.replies), (used, 1));
        }
    }
}
