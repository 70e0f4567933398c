//! Random streams of commands whose replies do not depend on the server: valid ones, nearly valid ones, and bytes that are
//! no commands at all.

use crate::support::{Dice, encode};

/// One command each: words, of which `$` and a letter is something drawn.
///
/// `$k` a key, `$v` a value, `$n` a number, `$i` an index, `$f` a decimal, `$m` a member, `$d` a database, `$c` a channel.
const COMMANDS: &str = include_str!("commands.txt");
/// Where those begin in it that are about the client and its connection.
const ABOUT_CLIENTS: &str = "# Connections";
const KEYS: [&str; 8] = ["a", "b", "{a}b", "list", "hash", "set", "zset", "stream"];
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "2",
    "10",
    "-1",
    "-100",
    "3.5",
    "x",
    "",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999999999999999",
];
/// What breaks the protocol. Nothing after it is read.
const NONSENSE: [&[u8]; 8] = [
    b"*1\r\n$-5\r\nGET\r\n",
    b"*x\r\n",
    b"*2\r\n:5\r\n",
    b"*1\r\n$99999999999\r\n",
    b"*9999999999\r\n",
    b"*1\r\n$3\nGET\r\n",
    b"GET \"a\r\n",
    b"*-10\r\nPING\r\n*1\r\n!\r\n",
];

/// What a client sends in one go.
#[derive(Clone)]
pub struct Script {
    /// Its commands, each as it is on the wire, in lists that go in one write each.
    pub parts: Vec<Vec<u8>>,
    /// Whether the last of it is no command, so that the server hangs up.
    pub ends_in_nonsense: bool,
}

impl Script {
    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }

    /// A stream that the dice choose.
    pub fn draw(dice: &mut Dice) -> Self {
        let templates: Vec<&str> = COMMANDS
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let own: Vec<&str> = COMMANDS
            .lines()
            .skip_while(|line| *line != ABOUT_CLIENTS)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let count = 1 + dice.roll(24);
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for _ in 0..count {
            if dice.roll(12) > 0 {
                let template = dice.one_of(&templates);
                parts.push(command(dice, template));
                continue;
            }
            // What there is about clients says most inside a transaction.
            parts.push(encode(&["multi"]));
            for _ in 0..1 + dice.roll(5) {
                let some = if dice.roll(2) == 0 { &own } else { &templates };
                let template = dice.one_of(some);
                parts.push(command(dice, template));
            }
            parts.push(encode(&["exec"]));
        }
        let ends_in_nonsense = dice.roll(20) == 0;
        if ends_in_nonsense {
            parts.push(dice.one_of(&NONSENSE).to_vec());
        }
        Self {
            parts,
            ends_in_nonsense,
        }
    }
}

fn command(dice: &mut Dice, template: &str) -> Vec<u8> {
    let mut words: Vec<Vec<u8>> = template.split(' ').map(|word| fill(dice, word)).collect();
    // A timeout that is another may be for ever; what comes first of two errors in a redirection is the client's, not ours; what is no text in the name of a setting is not given back as it was; the
    // time passes, and the channels of one client have an order that is each server's own.
    let as_it_is = [
        " 0.01",
        " block ",
        "config ",
        "time extra",
        "unsubscribe $c",
        "redirect",
    ]
    .iter()
    .any(|part| template.contains(part));
    if !as_it_is && dice.roll(6) == 0 {
        distort(dice, &mut words);
    }
    let plain = |word: &Vec<u8>| !word.is_empty() && word.iter().all(u8::is_ascii_alphanumeric);
    if dice.roll(12) == 0 && words.iter().all(plain) {
        let mut line = words.join(&b' ');
        line.extend_from_slice(if dice.roll(2) == 0 { b"\r\n" } else { b"\n" });
        return line;
    }
    encode(&words)
}

fn fill(dice: &mut Dice, word: &str) -> Vec<u8> {
    let drawn = match word {
        "$k" => dice.one_of(&KEYS).to_owned(),
        "$v" => value(dice),
        "$n" => dice.one_of(&NUMBERS).to_owned(),
        "$i" => dice.roll(7).to_string(),
        "$f" => format!("{}.5", dice.roll(9)),
        "$m" => format!("m{}", dice.roll(5)),
        "$d" => dice.roll(4).to_string(),
        "$c" => format!("c{}", dice.roll(3)),
        word => word.to_owned(),
    };
    drawn.into_bytes()
}

fn value(dice: &mut Dice) -> String {
    match dice.roll(12) {
        0 => String::new(),
        1 => "v".repeat(20_000),
        2 => "with spaces\r\nand lines".to_owned(),
        3..=6 => dice.roll(1000).to_string(),
        _ => format!("value-{}", dice.roll(50)),
    }
}

/// Makes it what a client with a defect may send.
fn distort(dice: &mut Dice, words: &mut Vec<Vec<u8>>) {
    let at = usize::try_from(dice.roll(words.len() as u64)).unwrap();
    match dice.roll(7) {
        0 if words.len() > 1 => {
            words.pop();
        }
        1 => words.push(b"extra".to_vec()),
        2 if at > 0 => words[at] = dice.one_of(&NUMBERS).as_bytes().to_vec(),
        3 if at > 0 => {
            words[at] = (0..dice.roll(12))
                .map(|_| u8::try_from(dice.roll(256)).unwrap())
                .collect()
        }
        4 => words[0].make_ascii_uppercase(),
        5 => words[0] = b"nosuchcommand".to_vec(),
        _ => words[at].push(b'x'),
    }
}
