//! What EXEC changes of what is subscribed to.

use super::*;

#[test]
fn a_transaction_changes_what_is_subscribed_to_as_its_reply_says() {
    let subscribe = |client: &mut Client, place: u32, names: [&str; 2]| {
        let names: [Box<[u8]>; 2] = names.map(|name| name.as_bytes().into());
        let asked = names.iter().map(|name| &**name);
        client.line.subscriptions.ask(asked).unwrap();
        let (verb, kind) = (Verb::Subscribe, Kind::Channel);
        client
            .line
            .will(place, Change::Names(Family { verb, kind }, names.into()));
    };
    let mut client = Client::new(true);
    client.transaction("MULTI ", Role::Multi);
    for place in [0, 2] {
        client.transaction("SUBSCRIBE ", Role::Plain);
        client
            .hear(if place == 0 {
                b"+OK\r\n+QUEUED\r\n"
            } else {
                b"+QUEUED\r\n"
            })
            .unwrap();
        subscribe(&mut client, place, if place == 0 { ["a", "b"] } else { ["c", "d"] });
    }
    client.seen();
    assert_eq!(client.line.names_then(Kind::Channel).len(), 4);
    client
        .line
        .expect(ExecFrames::of([(0, 2), (2, 2)].into(), false, VecDeque::new()));
    client.transaction("EXEC ", Role::Exec);
    let confirmed = [confirms("subscribe", "a", 1), confirms("subscribe", "b", 2)]
        .concat()
        .replace("*3", ">3");
    let message = ">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n";
    let reply = format!("*3\r\n{confirmed}{message}:1\r\n-NOPERM no\r\n");
    // In two parts, and with what is no part of it behind it.
    client.hear(&reply.as_bytes()[..30]).unwrap();
    assert_eq!(client.seen(), "");
    client.hear(format!("{}{message}", &reply[30..]).as_bytes()).unwrap();
    assert_eq!(client.seen(), format!("{reply}{message}"));
    assert_eq!(client.line.subscriptions.count_of(Kind::Channel), 2);
    assert!(!client.line.will_change());
    let mut names = client.line.names_then(Kind::Channel);
    names.sort();
    assert_eq!(names, [Box::from(&b"a"[..]), Box::from(&b"b"[..])]);
}
