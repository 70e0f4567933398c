//! What clients ask about themselves and about each other: the proxy's own clients, whichever worker has them.

use std::time::Duration;

use crate::support::{Client, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);

/// A Redis and a proxy of two workers before it.
struct Circuit {
    redis: Redis,
    _proxy: Pointsman,
    listen: String,
}

impl Circuit {
    fn start() -> Self {
        let redis = Redis::start(&[]);
        let listen = format!("127.0.0.1:{}", free_port());
        let mut proxy = Pointsman::start(&[
            "proxy",
            "--listen",
            &listen,
            "--master",
            &redis.addr(),
            "--workers",
            "2",
        ]);
        proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        let circuit = Self {
            redis,
            _proxy: proxy,
            listen,
        };
        // Each worker greets the master for itself.
        let mut both = [circuit.client(), circuit.client()];
        both.iter_mut()
            .for_each(|client| assert!(client.command(&["PING"]).text() == "PONG"));
        circuit
    }

    fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }
}

fn id(client: &mut Client) -> String {
    match client.command(&["CLIENT", "ID"]) {
        Value::Int(id) => id.to_string(),
        other => panic!("no id: {other:?}"),
    }
}

fn addr(client: &Client) -> String {
    client.stream().local_addr().unwrap().to_string()
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn clients_of_all_workers_are_listed_in_the_format_of_redis() {
    let circuit = Circuit::start();
    let (mut one, mut other) = (circuit.client(), circuit.client());
    one.command(&["CLIENT", "SETNAME", "first"]);
    other.command(&["SELECT", "5"]);
    other.command(&["SUBSCRIBE", "news"]);
    let list = one.command(&["CLIENT", "LIST"]).text();
    let of = |client: &Client| {
        let addr = format!(" addr={} ", addr(client));
        list.lines()
            .find(|line| line.contains(&addr))
            .unwrap_or_default()
            .to_owned()
    };
    let own = of(&one);
    for field in [
        " name=first ",
        " flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=26 ",
        " cmd=client|list user=default redir=-1 resp=2",
    ] {
        assert!(own.contains(field), "{field:?} is not in {own:?}");
    }
    assert!(
        of(&other).contains(" flags=P db=5 sub=1 psub=0 ssub=0 multi=-1 "),
        "{list}"
    );
    let names = |text: &str| -> Vec<String> {
        let line = text.lines().next().unwrap_or_default();
        line.split(' ')
            .filter_map(|field| field.split('=').next())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(names(&own), names(&circuit.redis.command(&["CLIENT", "LIST"]).text()));
    assert_eq!(
        one.command(&["CLIENT", "LIST", "TYPE", "pubsub"])
            .text()
            .lines()
            .count(),
        1
    );
    let two = [id(&mut one), "99999".to_owned()];
    let listed = one.command(&["CLIENT", "LIST", "ID", &two[0], &two[1]]).text();
    assert_eq!(listed.lines().count(), 1);
    assert!(
        one.command(&["CLIENT", "INFO"])
            .text()
            .starts_with(&format!("id={} addr={} ", two[0], addr(&one)))
    );
    one.command(&["MULTI"]);
    one.command(&["SET", "a", "1"]);
    let list = circuit.client().command(&["CLIENT", "LIST"]).text();
    assert!(list.contains(" flags=x db=0 sub=0 psub=0 ssub=0 multi=1 "), "{list}");
}

#[test]
fn clients_are_killed_by_address_and_id_on_whatever_worker() {
    let circuit = Circuit::start();
    let mut killer = circuit.client();
    let mut victims: Vec<Client> = (0..4).map(|_| circuit.client()).collect();
    victims.iter_mut().for_each(|client| drop(client.command(&["PING"])));
    let by_id = id(&mut victims[0]);
    assert_eq!(killer.command(&["CLIENT", "KILL", "ID", &by_id]), Value::Int(1));
    assert_eq!(killer.command(&["CLIENT", "KILL", "ID", &by_id]), Value::Int(0));
    assert_eq!(killer.command(&["CLIENT", "KILL", &addr(&victims[1])]), Value::ok());
    assert_eq!(
        killer.command(&["CLIENT", "KILL", "ADDR", &addr(&victims[2])]),
        Value::Int(1)
    );
    // One that is blocked at the master is let go there, too.
    victims[3].send(b"BLPOP q 0\r\n");
    let blocked = |count: &str| {
        circuit
            .redis
            .command(&["INFO", "clients"])
            .text()
            .contains(&format!("blocked_clients:{count}"))
    };
    eventually(SOON, || blocked("1"));
    assert_eq!(
        killer.command(&["CLIENT", "KILL", "ADDR", &addr(&victims[3])]),
        Value::Int(1)
    );
    eventually(SOON, || blocked("0"));
    for victim in &mut victims {
        assert!(victim.is_closed());
    }
    assert_eq!(killer.command(&["PING"]).text(), "PONG");
    // Who kills itself hears of it first.
    let own = addr(&killer);
    assert_eq!(killer.command(&["CLIENT", "KILL", &own]), Value::ok());
    assert!(killer.is_closed());
}

#[test]
fn refusals_about_clients_have_the_words_of_redis() {
    let circuit = Circuit::start();
    let mut client = circuit.client();
    for line in [
        "CLIENT LIST TYPE",
        "CLIENT LIST TYPE what",
        "CLIENT LIST ID x",
        "CLIENT LIST nosuch",
        "CLIENT INFO x",
        "CLIENT KILL",
        "CLIENT KILL 1.2.3.4:5",
        "CLIENT KILL ID x",
        "CLIENT KILL ID 0",
        "CLIENT KILL ADDR 1.2.3.4:5 ID",
        "CLIENT KILL TYPE what",
        "CLIENT KILL SKIPME maybe",
        "CLIENT KILL ADDR 1.2.3.4:5 LADDR 1.2.3.4:5",
        "CLIENT NO-EVICT maybe",
        "ACL WHOAMI",
    ] {
        assert_eq!(
            client.command(&words(line)),
            circuit.redis.command(&words(line)),
            "{line}"
        );
    }
}
