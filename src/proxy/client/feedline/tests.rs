//! The conversation as bytes: what Redis was seen to send, and what of it a client may see.

use proptest::prelude::*;

use super::*;
use crate::proxy::client::subscriptions::Kind;
use crate::proxy::client::window::Window;
use crate::route::Verdict;

/// A line with the client's window, as a session has them.
struct Client {
    line: FeedLine,
    window: Window,
    out: Vec<u8>,
    flow: Option<RunId>,
    sent: u64,
}

impl Client {
    fn new(resp3: bool) -> Self {
        let mut client = Self {
            line: FeedLine::default(),
            window: Window::default(),
            out: Vec::new(),
            flow: None,
            sent: 0,
        };
        client.reconnect(resp3);
        client
    }

    fn ask(&mut self, asked: Asked) {
        self.sent += 10;
        let run = self.window.reserve(1, 1);
        self.line.ask(asked, Some(run), self.sent, 10);
    }

    fn names(&mut self, verb: Verb, names: &[&str]) {
        let kind = Kind::Channel;
        if verb == Verb::Subscribe {
            let bytes = names.iter().map(|name| name.as_bytes());
            self.line.subscriptions.ask(bytes).unwrap();
        }
        let names = names.iter().map(|name| name.as_bytes().into()).collect();
        self.ask(Asked::Names(Family { verb, kind }, names));
    }

    fn plain(&mut self, text: &str, is_write: bool) {
        self.ask(Asked::Plain(Plain {
            bytes: text.as_bytes().to_vec(),
            is_write,
            again: is_write,
            role: Role::Plain,
            queued: false,
            since_ms: None,
        }));
    }

    /// MULTI, EXEC, or something between them.
    fn transaction(&mut self, text: &str, role: Role) {
        self.ask(Asked::Plain(Plain {
            bytes: text.as_bytes().to_vec(),
            is_write: role != Role::Multi,
            again: role != Role::Multi,
            role,
            queued: role != Role::Exec,
            since_ms: None,
        }));
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.shown(|line, show| line.take(bytes, &mut |shown| show(shown)))
    }

    fn hear_in_doubt(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.shown(|line, show| line.take_in_doubt(bytes, (0, 1), &mut |shown| show(shown)))
    }

    fn shown<T>(&mut self, take: impl FnOnce(&mut FeedLine, &mut dyn FnMut(Shown)) -> T) -> T {
        let Self {
            line,
            window,
            out,
            flow,
            ..
        } = self;
        take(line, &mut |shown| match shown {
            Shown::Reply(run, bytes) => window.fill(run, bytes, 1, out),
            Shown::Part(run, bytes) => window.fill(run, bytes, 0, out),
            Shown::Push(bytes) => window.push(bytes, out),
            Shown::Begins => *flow = Some(window.reserve(1, 1)),
            Shown::Ends => window.fill(flow.take().unwrap(), b"", 1, out),
        })
    }

    fn reconnect(&mut self, resp3: bool) -> String {
        let (mut bytes, sent) = (Vec::new(), &mut self.sent);
        *sent = 0;
        self.line.begin(resp3, true, |part| {
            bytes.extend_from_slice(part);
            *sent += part.len() as u64;
            *sent
        });
        String::from_utf8(bytes).unwrap()
    }

    fn seen(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }
}

fn confirms(word: &str, name: &str, count: u32) -> String {
    format!(
        "*3\r\n${}\r\n{word}\r\n${}\r\n{name}\r\n:{count}\r\n",
        word.len(),
        name.len()
    )
}

fn message(text: &str) -> String {
    format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n{text}\r\n", text.len())
}

/// A subscriber of a and b, with a message between the confirmations.
fn subscriber() -> Client {
    let mut client = Client::new(false);
    client.names(Verb::Subscribe, &["a", "b"]);
    let heard = [
        confirms("subscribe", "a", 1),
        message("x"),
        confirms("subscribe", "b", 2),
    ]
    .concat();
    client.hear(heard.as_bytes()).unwrap();
    assert_eq!(client.seen(), heard);
    assert_eq!(client.window.unanswered(), 0);
    client
}

#[test]
fn second_confirmations_are_swallowed_and_messages_among_them_are_not() {
    let mut client = subscriber();
    client.names(Verb::Subscribe, &["c", "d"]);
    client.hear(confirms("subscribe", "c", 3).as_bytes()).unwrap();
    // Half a message is lost with its connection, and nobody sees it.
    client.hear(&message("lost").as_bytes()[..20]).unwrap();
    client.seen();
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    let sent = client.reconnect(false);
    assert!(sent.starts_with("*4\r\n$9\r\nsubscribe\r\n"), "{sent}");
    assert!(sent.ends_with("*2\r\n$9\r\nsubscribe\r\n$1\r\nd\r\n"), "{sent}");
    let again = [
        confirms("subscribe", "a", 1),
        message("y"),
        confirms("subscribe", "b", 2),
        confirms("subscribe", "c", 3),
    ];
    client.hear(again.concat().as_bytes()).unwrap();
    assert_eq!(client.seen(), message("y"));
    assert!(client.line.is_caught_up());
    client.hear(confirms("subscribe", "d", 4).as_bytes()).unwrap();
    assert_eq!(client.seen(), confirms("subscribe", "d", 4));
    assert_eq!(client.window.unanswered(), 0);
}

#[test]
fn an_unsubscribe_without_names_is_answered_once_for_each() {
    let mut client = subscriber();
    client.ask(Asked::All(Kind::Channel));
    client.hear(confirms("unsubscribe", "b", 1).as_bytes()).unwrap();
    assert_eq!(client.window.unanswered(), 1);
    client.hear(confirms("unsubscribe", "a", 0).as_bytes()).unwrap();
    assert_eq!(client.window.unanswered(), 0);
    assert!(client.line.is_idle());
    client.ask(Asked::All(Kind::Channel));
    client.hear(b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n").unwrap();
    assert!(client.line.is_idle());
}

#[test]
fn a_refused_subscription_is_not_asked_for_again() {
    let mut client = subscriber();
    client.names(Verb::Subscribe, &["secret"]);
    client.hear(b"-NOPERM this user has no permissions\r\n").unwrap();
    assert_eq!(client.window.unanswered(), 0);
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    assert!(!client.reconnect(false).contains("secret"));
    assert_eq!(
        client.hear(b"-NOPERM not any more\r\n"),
        Err(Trouble::Refused("-NOPERM not any more".to_owned()))
    );
}

#[test]
fn a_lost_write_is_in_doubt_and_what_follows_it_is_asked_again() {
    let mut client = subscriber();
    client.plain("GET 1 ", false);
    client.plain("SET 2 ", true);
    client.plain("GET 3 ", false);
    client.plain("SET 4 ", true);
    // All but the last one had left.
    let Left::Answers(answers) = client.line.lose(client.sent - 1) else {
        panic!("nothing was cut off");
    };
    let lines: Vec<Vec<u8>> = answers.into_iter().map(|(_, line)| line).collect();
    assert_eq!(
        lines,
        [Verdict::MasterDown.line().unwrap(), Verdict::InDoubt.line().unwrap()]
    );
    assert!(client.reconnect(false).ends_with("GET 3 SET 4 "));
}

#[test]
fn what_is_too_large_to_be_kept_is_in_doubt_only_if_it_was_sent_and_may_have_changed_something() {
    let mut client = subscriber();
    client.plain("GET 1 ", false);
    client.plain("", false);
    client.plain("", true);
    client.line.goes_on();
    let told = |client: &mut Client, written: u64| -> Vec<Vec<u8>> {
        let Left::Answers(answers) = client.line.lose(written) else {
            panic!("nothing was cut off");
        };
        answers.into_iter().map(|(_, line)| line).collect()
    };
    let (masterdown, indoubt) = (Verdict::MasterDown.line().unwrap(), Verdict::InDoubt.line().unwrap());
    let written = client.sent;
    assert_eq!(
        told(&mut client, written),
        [masterdown, masterdown],
        "more of it was to come"
    );
    assert!(client.reconnect(false).ends_with("GET 1 "));
    client.plain("", true);
    client.line.goes_on();
    client.line.ends_at(client.sent);
    client.plain("GET 2 ", false);
    let written = client.sent;
    assert_eq!(
        told(&mut client, written),
        [masterdown, indoubt],
        "GET 1 is not shown a later value"
    );
    assert!(client.reconnect(false).ends_with("GET 2 "));
}

#[test]
fn in_doubt_replies_say_so_and_all_else_is_shown() {
    let mut client = subscriber();
    client.plain("SET 1 ", true);
    client.names(Verb::Subscribe, &["c"]);
    client.plain("GET 2 ", false);
    client.plain("LPUSH 3 ", true);
    client.plain("GET 4 ", false);
    let heard = [
        message("x"),
        "+OK\r\n".to_owned(),
        confirms("subscribe", "c", 3),
        message("y"),
        "$1\r\nv\r\n-WRONGTYPE x\r\n$3\r\nab".to_owned(),
    ]
    .concat();
    client.hear_in_doubt(heard.as_bytes()).unwrap();
    let shown = [
        message("x"),
        "-INDOUBT written on the master, acknowledged by 0 of 1 replicas\r\n".to_owned(),
        confirms("subscribe", "c", 3),
        message("y"),
        "-INDOUBT read on the master, what it shows is acknowledged by 0 of 1 replicas\r\n-WRONGTYPE x\r\n".to_owned(),
    ]
    .concat();
    assert_eq!(client.seen(), shown);
    // It ends in what is acknowledged.
    client.hear(b"c\r\n").unwrap();
    assert_eq!(client.seen(), "$3\r\nabc\r\n");
    assert_eq!(client.line.subscriptions.count_of(Kind::Channel), 3);
}

#[test]
fn a_write_that_a_demoted_master_refused_is_asked_again() {
    const READONLY: &[u8] = b"-READONLY You can't write against a read only replica.\r\n";
    let mut client = subscriber();
    client.plain("SET 1 ", true);
    assert_eq!(client.hear(READONLY), Err(Trouble::Demoted));
    assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
    assert!(client.reconnect(false).ends_with("SET 1 "));
    assert_eq!(client.seen(), "");
}

#[test]
fn behind_the_answer_to_the_marker_nothing_is_heard_and_the_next_connection_begins_anew() {
    let mut client = subscriber();
    client.plain("GET 1 ", false);
    client.line.mark(|_| u64::MAX);
    let heard = [message("old"), "$1\r\nv\r\n".to_owned()].concat();
    client.hear(heard.as_bytes()).unwrap();
    assert!(!client.line.is_drained());
    let end = [
        "-ERR wrong number of arguments for 'get' command\r\n",
        &message("stray"),
    ]
    .concat();
    client.hear(end.as_bytes()).unwrap();
    assert!(client.line.is_drained());
    assert_eq!(client.seen(), heard);
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    assert!(!client.reconnect(false).is_empty() && !client.line.is_drained());
    let again = [
        confirms("subscribe", "a", 1),
        confirms("subscribe", "b", 2),
        message("new"),
    ];
    client.hear(again.concat().as_bytes()).unwrap();
    assert_eq!(client.seen(), message("new"));
}

#[test]
fn a_server_that_is_not_master_yet_gets_no_write_and_nothing_behind_one() {
    let mut client = subscriber();
    client.plain("GET 1 ", false);
    client.plain("SET 2 ", true);
    client.plain("GET 3 ", false);
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    let mut sent = Vec::new();
    let mut send = |bytes: &[u8]| {
        sent.extend_from_slice(bytes);
        sent.len() as u64
    };
    client.line.begin(false, false, &mut send);
    assert_eq!(client.line.awaited(), 3);
    let waiting = Asked::Plain(Plain {
        bytes: b"SET 4 ".to_vec(),
        is_write: true,
        again: true,
        role: Role::Plain,
        queued: false,
        since_ms: None,
    });
    let run = client.window.reserve(1, 1);
    client.line.ask_later(waiting, run, 6);
    client.line.release(false, &mut send);
    assert!(client.line.has_unsent());
    // Nothing overtakes what is still unanswered.
    assert_eq!(client.line.expire(b"-X\r\n", true), []);
    client.line.release(true, &mut send);
    let sent = String::from_utf8(sent).unwrap();
    assert!(sent.ends_with("GET 1 SET 2 GET 3 SET 4 "), "{sent}");
    let heard = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)].concat();
    client.hear(heard.as_bytes()).unwrap();
    client.hear(b":1\r\n:2\r\n:3\r\n:4\r\n").unwrap();
    assert_eq!(client.seen(), ":1\r\n:2\r\n:3\r\n:4\r\n");
    assert_eq!((client.window.unanswered(), client.line.unanswered_bytes()), (0, 0));
}

#[test]
fn what_waits_too_long_for_the_server_to_become_master_is_given_up_and_the_rest_is_not() {
    let mut client = subscriber();
    client.plain("SET 1 ", true);
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    client.line.begin(false, false, |_| 0);
    let answers = client.line.expire(b"-X\r\n", true);
    assert_eq!(answers.len(), 1);
    assert!(!client.line.has_unsent() && !client.line.is_caught_up());
}

#[test]
fn a_request_that_blocks_is_shortened_only_at_the_front() {
    let mut client = subscriber();
    client.plain("GET 1 ", false);
    client.line.shorten(9, |_, _| panic!("it does not block"));
    client.hear(b":1\r\n").unwrap();
    client.ask(Asked::Plain(Plain {
        bytes: b"BLPOP 9 ".to_vec(),
        is_write: true,
        again: true,
        role: Role::Plain,
        queued: false,
        since_ms: Some(7),
    }));
    let refused = b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";
    assert_eq!(client.hear(refused), Err(Trouble::Demoted));
    assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
    client.line.shorten(9, |bytes, waited_ms| {
        assert_eq!((bytes, waited_ms), (&b"BLPOP 9 "[..], 2));
        Some(b"BLPOP 7 ".to_vec())
    });
    assert!(client.reconnect(false).ends_with("BLPOP 7 "));
    // What it has waited once is not taken off twice.
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    client.line.shorten(12, |bytes, waited_ms| {
        assert_eq!((bytes, waited_ms), (&b"BLPOP 7 "[..], 3));
        Some(b"BLPOP 4 ".to_vec())
    });
    assert!(client.reconnect(false).ends_with("BLPOP 4 "));
}

#[test]
fn a_transaction_in_pieces_is_queued_again_by_the_next_master_and_its_replies_are_swallowed() {
    let mut client = subscriber();
    client.transaction("MULTI ", Role::Multi);
    client.transaction("SET 1 ", Role::Plain);
    client.ask(Asked::Poison(b"-X\r\n".as_slice().into()));
    client.transaction("SET 2 ", Role::Plain);
    client.hear(b"+OK\r\n+QUEUED\r\n-ERR arity\r\n").unwrap();
    assert_eq!(client.seen(), "+OK\r\n+QUEUED\r\n-X\r\n");
    assert!(!client.line.writes(), "nothing is executed before EXEC");
    for _ in 0..2 {
        assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
        assert!(
            client
                .reconnect(false)
                .ends_with("MULTI SET 1 *1\r\n$9\r\nSUBSCRIBE\r\nSET 2 ")
        );
        let heard = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)].concat();
        client.hear(heard.as_bytes()).unwrap();
        client.hear(b"+OK\r\n+QUEUED\r\n").unwrap();
        assert_eq!(client.seen(), "");
    }
    client.hear(b"-ERR arity\r\n+QUEUED\r\n").unwrap();
    assert_eq!(client.seen(), "+QUEUED\r\n");
    client.transaction("EXEC ", Role::Exec);
    assert!(client.line.writes());
    let refused =
        b"-EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.\r\n";
    assert_eq!(client.hear(refused), Err(Trouble::Demoted));
    assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
    // Not even a part of it goes to who is no master yet.
    let mut sent = String::new();
    let mut send = |bytes: &[u8]| {
        sent.push_str(std::str::from_utf8(bytes).unwrap());
        sent.len() as u64
    };
    client.line.begin(false, false, &mut send);
    client.line.release(true, &mut send);
    assert!(
        sent.ends_with("MULTI SET 1 *1\r\n$9\r\nSUBSCRIBE\r\nSET 2 EXEC "),
        "{sent}"
    );
    let heard = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)].concat();
    client.hear(heard.as_bytes()).unwrap();
    client
        .hear(b"+OK\r\n+QUEUED\r\n-ERR arity\r\n+QUEUED\r\n-EXECABORT x\r\n")
        .unwrap();
    assert_eq!(client.seen(), "-EXECABORT x\r\n");
    assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
    assert!(!client.reconnect(false).contains("MULTI"), "it is over");
}

#[test]
fn a_transaction_that_lacks_what_waited_too_long_is_not_executed() {
    let mut client = subscriber();
    client.transaction("MULTI ", Role::Multi);
    client.line.multi = true;
    client.hear(b"+OK\r\n").unwrap();
    assert_eq!(client.line.lose(client.sent), Left::Answers(Vec::new()));
    client.transaction("SET 1 ", Role::Plain);
    client.line.begin(false, false, |_| 0);
    let heard = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)].concat();
    client.hear(heard.as_bytes()).unwrap();
    assert!(!client.line.stale);
    assert_eq!(client.line.expire(b"-X\r\n", true).len(), 1);
    assert!(
        client.line.stale && client.line.has_unsent(),
        "what was queued is still to come"
    );
}

#[test]
fn what_was_watched_on_a_lost_connection_makes_exec_do_nothing() {
    let mut client = subscriber();
    client.line.watch = true;
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    assert!(client.line.stale);
    client.reconnect(false);
    let heard = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)].concat();
    client.hear(heard.as_bytes()).unwrap();
    client.transaction("MULTI ", Role::Multi);
    client.ask(Asked::Discard(b"_\r\n"));
    client.hear(b"+OK\r\n+OK\r\n").unwrap();
    assert_eq!(client.seen(), "+OK\r\n_\r\n");
}

#[test]
fn transactions_and_cut_off_frames_end_with_their_connection() {
    let mut client = subscriber();
    client.transaction("MULTI ", Role::Multi);
    client.transaction("EXEC ", Role::Exec);
    assert_eq!(client.line.lose(client.sent), Left::Transaction);
    let mut client = subscriber();
    client.transaction(&"x".repeat(300_000), Role::Multi);
    client.hear(b"+OK\r\n").unwrap();
    assert_eq!(client.line.lose(0), Left::Transaction, "it is too long to be kept");
    let mut client = subscriber();
    let long = message(&"m".repeat(2 * FRAME_BYTES_MAX));
    let part = &long.as_bytes()[..FRAME_BYTES_MAX + 1];
    client.hear(part).unwrap();
    assert_eq!(
        client.window.unanswered(),
        1,
        "our own replies would get into the message"
    );
    assert_eq!(client.line.lose(0), Left::CutOff);
}

#[test]
fn bytes_that_nothing_explains_poison_the_line() {
    for bytes in ["+OK\r\n", ":1\r\n", "*2\r\n$4\r\npong\r\n$0\r\n\r\n", "x"] {
        assert_eq!(subscriber().hear(bytes.as_bytes()), Err(Trouble::Poisoned), "{bytes}");
    }
}

#[test]
fn a_reply_is_no_line_of_monitor_though_it_begins_with_digits() {
    let mut client = Client::new(false);
    client.ask(Asked::Monitor);
    client.plain("DEBUG DIGEST", false);
    client
        .hear(b"+OK\r\n+1700000000.5 [0 127.0.0.1:1] \"PING\"\r\n")
        .unwrap();
    assert_eq!(client.window.unanswered(), 1);
    client.hear(b"+0123456789abcdef0123456789abcdef01234567\r\n").unwrap();
    assert_eq!(client.window.unanswered(), 0);
}

#[test]
fn thousands_in_flight_are_counted_and_not_searched() {
    let mut client = Client::new(true);
    for _ in 0..2000 {
        client.plain("GET ", false);
        assert!(!client.line.writes());
    }
    client.plain("SET ", true);
    assert!(client.line.writes());
    client.hear(":1\r\n".repeat(2000).as_bytes()).unwrap();
    assert!(client.line.writes());
    client.hear(b"+OK\r\n").unwrap();
    assert!(!client.line.writes());
    let blocking = |since_ms| {
        Asked::Plain(Plain {
            bytes: b"BLPOP ".to_vec(),
            is_write: true,
            again: true,
            role: Role::Plain,
            queued: false,
            since_ms,
        })
    };
    client.ask(blocking(Some(1)));
    client.plain("SET ", true);
    assert!(client.line.blocks() && !client.line.writes(), "it has not begun");
    client.hear(b":1\r\n").unwrap();
    assert!(!client.line.blocks() && client.line.writes());
}

proptest! {
    #[test]
    fn any_split_shows_the_same(resp3 in any::<bool>(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let push = |text: String| if resp3 { text.replacen('*', ">", 1) } else { text };
        let heard = [
            push(confirms("subscribe", "a", 1)),
            "*2\r\n$4\r\npong\r\n$1\r\nx\r\n".to_owned(),
            push(message("one")),
            push(message(&"m".repeat(FRAME_BYTES_MAX + 5))),
            push(confirms("subscribe", "b", 2)),
            "+1700000000.1 [0 lua] \"PING\"\r\n".to_owned(),
            push(confirms("unsubscribe", "a", 1)),
            push(confirms("unsubscribe", "b", 0)),
        ].concat();
        let mut client = Client::new(resp3);
        client.line.monitoring = true;
        client.names(Verb::Subscribe, &["a"]);
        client.plain("PING x", false);
        client.names(Verb::Subscribe, &["b"]);
        client.ask(Asked::All(Kind::Channel));
        let cuts = cuts.iter().map(|cut| cut.index(heard.len() + 1));
        let mut cuts: Vec<usize> = cuts.chain([0, heard.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            client.hear(&heard.as_bytes()[pair[0]..pair[1]]).unwrap();
        }
        prop_assert!(client.seen() == heard, "something else was shown");
        prop_assert_eq!(client.window.unanswered(), 0);
        prop_assert_eq!(client.line.unanswered_bytes(), 0);
        prop_assert!(client.line.subscriptions.is_empty());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'>'), Just(b'+'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..200)) {
        let mut client = subscriber();
        client.plain("x", false);
        let _any = client.hear(&bytes);
    }
}

mod changes;
mod tracking;
