//! Prometheus' text form.

use std::fmt::Write as _;

/// What a number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number. Its name begins with `pointsman_` and ends with its base unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it counts, in a sentence.
    pub help: &'static str,
    /// What it does.
    pub kind: Kind,
    /// What it is now.
    pub value: u64,
}

pub(super) fn text(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for Metric {
        name,
        help,
        kind,
        value,
    } in metrics
    {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_written_as_prometheus_reads_it() {
        let metric = Metric {
            name: "pointsman_clients",
            help: "Clients that are connected.",
            kind: Kind::Gauge,
            value: 3,
        };
        assert_eq!(
            text(&[metric]),
            "# HELP pointsman_clients Clients that are connected.\n# TYPE pointsman_clients gauge\npointsman_clients 3\n"
        );
    }
}
