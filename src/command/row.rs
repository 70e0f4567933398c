//! One command as `commands.json` and the servers' `COMMAND` describe it, before pointsman judges it.
//!
//! The data file holds one row a line, sorted by name, merged from the replies of several server versions by
//! `examples/generate_commands.rs`, whose note says how to make it anew.

use serde::{Deserialize, Serialize};

use super::flags::Flags;
use super::spec::{Begin, Find, KeyKind, KeySpec};

/// One command or subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The full name, lower case, a subcommand as `config|get`.
    pub name: String,
    /// How many arguments it takes, its name included; negative: at least so many.
    pub arity: i32,
    /// Flags, as the server names them.
    pub flags: Vec<String>,
    /// Key specifications; servers before 7.0 have none and the legacy positions stand in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<RowSpec>,
}

/// One key specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSpec {
    /// Flags, as the server names them: RO, RW, OW, RM, access, update, insert, delete, `not_key`, incomplete, ..
    pub flags: Vec<String>,
    /// Begin search by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<i64>,
    /// Begin search by keyword and the argument to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyword: Option<(String, i64)>,
    /// Find keys by range: last key, step, limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[i64; 3]>,
    /// Find keys by number: index of the number, first key, step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keynum: Option<[i64; 3]>,
}

impl Row {
    /// The flags as bits.
    pub fn flag_bits(&self) -> Flags {
        self.flags.iter().map(|name| Flags::named(name)).collect()
    }

    /// The key specifications, checked.
    pub fn specs(&self) -> Box<[KeySpec]> {
        self.keys.iter().map(RowSpec::checked).collect()
    }
}

impl RowSpec {
    fn checked(&self) -> KeySpec {
        let flagged = |name: &str| self.flags.iter().any(|flag| flag == name);
        KeySpec {
            begin: self.begin().unwrap_or(Begin::Unknown),
            find: self.find().unwrap_or(Find::Unknown),
            kind: if flagged("not_key") {
                KeyKind::Channel
            } else {
                KeyKind::Key
            },
            incomplete: flagged("incomplete"),
        }
    }

    fn begin(&self) -> Option<Begin> {
        if let Some((word, from)) = &self.keyword {
            return Some(Begin::Keyword(word.as_str().into(), i32::try_from(*from).ok()?));
        }
        let index = u32::try_from(self.index?).ok()?;
        (index > 0).then_some(Begin::Index(index))
    }

    fn find(&self) -> Option<Find> {
        let step = |step: i64| u32::try_from(step).ok().filter(|step| *step > 0);
        if let Some([last, every, limit]) = self.range {
            let last = i32::try_from(last).ok()?;
            let limit = u32::try_from(limit).ok()?;
            let step = step(every)?;
            return Some(Find::Range { last, step, limit });
        }
        let [number, first, every] = self.keynum?;
        let number = u32::try_from(number).ok()?;
        let first = u32::try_from(first).ok()?;
        let step = step(every)?;
        Some(Find::Count { number, first, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(range: [i64; 3]) -> Find {
        let spec = RowSpec {
            index: Some(1),
            range: Some(range),
            ..RowSpec::default()
        };
        spec.checked().find
    }

    #[test]
    fn a_step_that_would_never_end_is_unknown() {
        assert_eq!(spec([-1, 0, 0]), Find::Unknown);
        assert_eq!(spec([-1, -1, 0]), Find::Unknown);
        assert_eq!(spec([i64::MAX, 1, 0]), Find::Unknown);
        assert_ne!(spec([-1, 1, 0]), Find::Unknown);
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let line = r#"{"name":"xread","arity":-4,"flags":["readonly"],"keys":[{"flags":["RO"],"keyword":["STREAMS",1],"range":[-1,1,2]}]}"#;
        let row: Row = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&row).unwrap(), line);
        assert_eq!(row.specs()[0].begin, Begin::Keyword("STREAMS".into(), 1));
    }
}
