//! Framing of requests: however the bytes arrive, the same requests and the same error come of them.

use pointsman::resp::{Args, ProtocolError, RequestLimits, RequestScanner, Scan, Span, put_inline_as_request};

/// The fewest bytes that an argument and its header take: `$0\r\n\r\n`.
const ARGUMENT_BYTES_MIN: usize = 6;

/// What a session makes of a stream of requests.
#[derive(Debug, Default, PartialEq)]
pub struct Requests {
    /// Each with its arguments; an inline one as the request it stands for.
    pub found: Vec<Vec<Vec<u8>>>,
    /// What ended it.
    pub error: Option<ProtocolError>,
    /// Bytes of a request that is not whole.
    pub rest: usize,
}

/// Reads `bytes` as they arrive in pieces that end at `cuts`, keeping only what is unfinished, as a session does.
pub fn read(bytes: &[u8], cuts: impl IntoIterator<Item = usize>, limits: &RequestLimits) -> Requests {
    let (mut scanner, mut spans) = (RequestScanner::default(), Vec::new());
    let (mut requests, mut tail, mut at) = (Requests::default(), Vec::new(), 0);
    for cut in cuts.into_iter().chain([bytes.len()]) {
        tail.extend_from_slice(&bytes[at..cut]);
        at = cut;
        loop {
            let scan = scanner.scan(&tail, &mut spans, limits);
            assert!(
                !scanner.is_inside() || spans.len() * ARGUMENT_BYTES_MIN <= tail.len(),
                "more spans than the bytes can hold"
            );
            let len = match scan {
                Ok(Scan::Incomplete(need)) => {
                    assert!(need > tail.len(), "waits for bytes that are there");
                    break;
                }
                Ok(Scan::Nothing(len)) => len,
                Ok(Scan::Frame(len)) => {
                    requests.found.push(words(&tail[..len], &spans));
                    len
                }
                Ok(Scan::Inline(len)) => {
                    let mut request = Vec::new();
                    requests.error = put_inline_as_request(&tail[..len], &mut request).err();
                    if requests.error.is_some() {
                        return requests;
                    }
                    let whole = Args::read(&request, &mut Vec::new()).is_some();
                    assert!(whole || request.is_empty(), "an inline request stands for one request");
                    requests.found.push(vec![request]);
                    len
                }
                Err(error) => {
                    requests.error = Some(error);
                    return requests;
                }
            };
            tail.drain(..len);
        }
    }
    requests.rest = tail.len();
    requests
}

fn words(frame: &[u8], spans: &[Span]) -> Vec<Vec<u8>> {
    Args::new(frame, spans).iter().map(<[u8]>::to_vec).collect()
}

/// The target.
pub fn run(bytes: &[u8]) {
    for authenticated in [true, false] {
        let limits = RequestLimits {
            authenticated,
            ..RequestLimits::default()
        };
        let whole = read(bytes, [], &limits);
        assert_eq!(read(bytes, super::cuts(bytes), &limits), whole, "cut anywhere");
        assert_eq!(read(bytes, 0..bytes.len(), &limits), whole, "byte by byte");
    }
    streamed(bytes);
}

/// A request whose end is found without keeping it ends where a collected one does.
fn streamed(bytes: &[u8]) {
    let limits = RequestLimits::default();
    let have = super::cuts(bytes).first().copied().unwrap_or_default();
    let (mut scanner, mut spans) = (RequestScanner::default(), Vec::new());
    if !matches!(
        scanner.scan(&bytes[..have], &mut spans, &limits),
        Ok(Scan::Incomplete(_))
    ) {
        return;
    }
    let Some(mut stream) = scanner.stream(have) else { return };
    let streamed = stream.feed(&bytes[have..], &limits);
    match (scanner.scan(bytes, &mut spans, &limits), streamed) {
        (Ok(Scan::Frame(len)), Ok((used, true))) => assert_eq!(have + used, len),
        (Ok(Scan::Incomplete(_)), Ok((used, false))) => assert_eq!(have + used, bytes.len()),
        // A stream keeps no more of a header line than a number needs, and refuses a longer one sooner.
        (Err(_) | Ok(Scan::Incomplete(_)), Err(_)) => {}
        (collected, streamed) => panic!("{collected:?}, but {streamed:?} as a stream"),
    }
}
