//! Tracking from one connection to the next, and what CLIENT CACHING said.

use super::*;

/// Asks `CLIENT ...`.
fn about(client: &mut Client, line: &str) {
    let (mut frame, mut spans) = (Vec::new(), Vec::new());
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    put_request(&mut frame, &words);
    let args = crate::resp::Args::read(&frame, &mut spans).unwrap();
    let word = match words[1] {
        b"TRACKING" => Word::tracking(&args).unwrap(),
        b"CACHING" => Word::caching(&args).unwrap(),
        _ => Word::Asks,
    };
    client.ask(Asked::Tracking(word, format!("{line} ").into_bytes()));
}

/// The requests of a conversation that begins anew, without lengths.
fn words_of(bytes: &str) -> String {
    let shown = bytes.split("\r\n").filter(|part| !part.starts_with(['*', '$']));
    shown.collect::<Vec<_>>().join(" ")
}

#[test]
fn tracking_begins_again_with_the_next_connection_and_the_client_forgets_what_it_has() {
    let mut client = Client::new(true);
    about(&mut client, "CLIENT TRACKING ON");
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    assert!(!client.line.tracking.take_owed(), "nothing was confirmed");
    assert_eq!(client.reconnect(true), "CLIENT TRACKING ON ");
    client.hear(b"+OK\r\n").unwrap();
    assert!(!client.line.is_idle() && client.line.tracking.is_on());
    client.plain("GET 1 ", false);
    let push = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
    client.hear(format!("{push}$1\r\nv\r\n").as_bytes()).unwrap();
    assert_eq!(client.seen(), format!("+OK\r\n{push}$1\r\nv\r\n"));
    client.plain("GET 2 ", false);
    for owed in [true, false] {
        assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
        assert_eq!(client.line.tracking.take_owed(), owed);
        let sent = client.reconnect(true);
        assert_eq!(words_of(&sent).trim(), "CLIENT TRACKING ON GET 2");
        assert!(!client.line.is_caught_up());
    }
    client.hear(b"+OK\r\n").unwrap();
    assert!(client.line.is_caught_up());
    client.hear(b"$1\r\nw\r\n").unwrap();
    assert_eq!(client.seen(), "$1\r\nw\r\n", "the second confirmation is ours");
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    assert!(client.line.tracking.take_owed());
    client.reconnect(true);
    let refused = client.hear(b"-NOPERM no\r\n");
    assert_eq!(refused, Err(Trouble::Refused("-NOPERM no".to_owned())));
}

#[test]
fn what_redis_refuses_changes_no_tracking() {
    let mut client = Client::new(true);
    about(&mut client, "CLIENT TRACKING ON OPTIN");
    about(&mut client, "CLIENT TRACKING OFF");
    about(&mut client, "CLIENT CACHING YES");
    client.hear(b"+OK\r\n-NOPERM no\r\n-NOPERM no\r\n").unwrap();
    assert_eq!(client.line.lose(0), Left::Answers(Vec::new()));
    assert_eq!(words_of(&client.reconnect(true)).trim(), "CLIENT TRACKING ON OPTIN");
    client.hear(b"+OK\r\n").unwrap();
    about(&mut client, "CLIENT TRACKING OFF");
    client.hear(b"+OK\r\n").unwrap();
    assert!(client.line.is_idle());
}

#[test]
fn what_caching_said_stands_directly_before_the_request_that_it_was_said_of() {
    let mut client = Client::new(true);
    about(&mut client, "CLIENT TRACKING ON OPTIN");
    about(&mut client, "CLIENT CACHING YES");
    client.hear(b"+OK\r\n+OK\r\n").unwrap();
    client.plain("GET 1 ", false);
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    let expected = "CLIENT TRACKING ON OPTIN CLIENT CACHING YES GET 1";
    assert_eq!(words_of(&client.reconnect(true)).trim(), expected);
    client.hear(b"+OK\r\n+OK\r\n").unwrap();
    // A reply that is shown in parts ends it, too.
    let long = format!("${}\r\n{}\r\n", 2 * FRAME_BYTES_MAX, "x".repeat(2 * FRAME_BYTES_MAX));
    client.hear(long.as_bytes()).unwrap();
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    assert_eq!(
        words_of(&client.reconnect(true)).trim(),
        "CLIENT TRACKING ON OPTIN",
        "it was said of one request"
    );
    client.hear(b"+OK\r\n").unwrap();
    // Before a transaction it lasts until EXEC.
    about(&mut client, "CLIENT CACHING YES");
    client.transaction("MULTI ", Role::Multi);
    client.transaction("GET 2 ", Role::Plain);
    client.hear(b"+OK\r\n+OK\r\n+QUEUED\r\n").unwrap();
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    let expected = "CLIENT TRACKING ON OPTIN CLIENT CACHING YES MULTI GET 2";
    assert_eq!(words_of(&client.reconnect(true)).trim(), expected);
    client.hear(b"+OK\r\n+OK\r\n+OK\r\n+QUEUED\r\n").unwrap();
    client.transaction("EXEC ", Role::Exec);
    client.hear(b"*1\r\n$1\r\nv\r\n").unwrap();
    assert_eq!(client.line.lose(u64::MAX), Left::Answers(Vec::new()));
    assert_eq!(words_of(&client.reconnect(true)).trim(), "CLIENT TRACKING ON OPTIN");
}

#[test]
fn what_caching_said_of_a_request_that_is_given_up_is_not_said_of_the_next() {
    let mut client = Client::new(true);
    about(&mut client, "CLIENT TRACKING ON OPTOUT");
    about(&mut client, "CLIENT CACHING NO");
    client.hear(b"+OK\r\n+OK\r\n").unwrap();
    client.plain("SET 1 ", true);
    client.plain("GET 2 ", false);
    let Left::Answers(answers) = client.line.lose(client.sent) else {
        panic!("nothing was cut off");
    };
    assert_eq!(answers.len(), 1);
    assert_eq!(
        words_of(&client.reconnect(true)).trim(),
        "CLIENT TRACKING ON OPTOUT GET 2"
    );
}
