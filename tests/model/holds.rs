//! What holds with all rules on: every state within the bounds.

use super::rules::{Bounds, Rules};
use super::search::assert_holds;
use super::state::Budget;

const SMALL: Bounds = Bounds::SMALL;
const NO_FAULTS: Budget = SMALL.faults;
const KILL_AND_RESTART: Budget = Budget {
    kills: 1,
    restarts: 1,
    ..NO_FAULTS
};

fn holds(what: &str, bounds: Bounds) {
    assert_holds(what, Rules::ALL, bounds, false, 2);
}

fn goes_on(what: &str, bounds: Bounds) {
    assert_holds(what, Rules::ALL, bounds, true, 2);
}

#[test]
fn elections_lose_nothing() {
    let bounds = Bounds {
        epochs: 3,
        faults: KILL_AND_RESTART,
        ..SMALL
    };
    holds(
        "n=2 W=1, 2 writes",
        Bounds {
            members: 2,
            writes: 2,
            ..bounds
        },
    );
    holds(
        "n=3 W=1, 1 write, no kill",
        Bounds {
            faults: NO_FAULTS,
            ..bounds
        },
    );
}

#[test]
fn from_every_state_somebody_can_serve() {
    let bounds = Bounds {
        faults: Budget {
            switches: 1,
            ..KILL_AND_RESTART
        },
        ..SMALL
    };
    goes_on("n=3 W=1, a kill and a switchover", bounds);
    goes_on(
        "n=2 W=1, a kill and a switchover",
        Bounds {
            members: 2,
            epochs: 3,
            ..bounds
        },
    );
    goes_on(
        "n=3 W=1, 3 epochs",
        Bounds {
            epochs: 3,
            writes: 0,
            faults: KILL_AND_RESTART,
            ..SMALL
        },
    );
}

/// The long run: `make model`.
#[test]
#[ignore = "some minutes in release, an hour in debug: make model"]
fn everything_within_wide_bounds() {
    let bounds = Bounds {
        writes: 2,
        epochs: 3,
        faults: KILL_AND_RESTART,
        ..SMALL
    };
    holds("n=3 W=1, 2 writes, 3 epochs, 1 kill", bounds);
    holds("n=2 W=1, the same", Bounds { members: 2, ..bounds });
    holds("n=3 W=2, the same", Bounds { w: 2, ..bounds });
    let twice = Budget {
        kills: 2,
        restarts: 2,
        ..NO_FAULTS
    };
    holds(
        "n=2 W=1, 2 kills",
        Bounds {
            members: 2,
            faults: twice,
            ..bounds
        },
    );
    holds(
        "n=3 W=1, 2 kills, 1 write",
        Bounds {
            writes: 1,
            faults: twice,
            ..bounds
        },
    );
    holds(
        "n=2 W=1, 2 kills, 4 epochs",
        Bounds {
            members: 2,
            epochs: 4,
            faults: twice,
            ..bounds
        },
    );
    holds(
        "n=3 W=1, 4 epochs, 1 write",
        Bounds {
            epochs: 4,
            writes: 1,
            ..bounds
        },
    );
    holds(
        "n=3 W=1, restart with old data",
        Bounds {
            old_data: true,
            ..bounds
        },
    );
    let stuck = Budget { stuck: 1, ..NO_FAULTS };
    holds(
        "n=3 W=1, a stuck command",
        Bounds {
            faults: stuck,
            ..bounds
        },
    );
    let switch = Budget {
        switches: 1,
        ..KILL_AND_RESTART
    };
    holds(
        "n=3 W=1, switchover",
        Bounds {
            faults: switch,
            ..bounds
        },
    );
    holds(
        "n=2 W=1, switchover",
        Bounds {
            members: 2,
            faults: switch,
            ..bounds
        },
    );
    holds(
        "n=3 W=2, switchover",
        Bounds {
            w: 2,
            faults: switch,
            ..bounds
        },
    );
    let changes = Budget {
        changes: 1,
        ..KILL_AND_RESTART
    };
    let change = |members, w, to| Bounds {
        members,
        w,
        change: to,
        faults: changes,
        ..bounds
    };
    holds("a member removed, n=3", change(3, 1, (0b101, 1)));
    holds("a member added, n=2", change(2, 1, (0b111, 1)));
    holds("W raised, n=2", change(2, 0, (0b11, 1)));
    holds("W lowered, n=2", change(2, 1, (0b11, 0)));
    holds(
        "a seat taken, n=2",
        Bounds {
            members: 2,
            joins: true,
            ..bounds
        },
    );
    let all = Budget {
        switches: 1,
        changes: 1,
        ..KILL_AND_RESTART
    };
    holds(
        "all together, n=3, 1 write",
        Bounds {
            writes: 1,
            change: (0b101, 1),
            faults: all,
            ..bounds
        },
    );
}

/// Part of the long run.
#[test]
#[ignore = "some minutes in release, an hour in debug: make model"]
fn from_every_state_within_wide_bounds_somebody_can_serve() {
    let bounds = Bounds {
        epochs: 3,
        faults: KILL_AND_RESTART,
        ..SMALL
    };
    goes_on("n=3 W=1, 1 write", bounds);
    goes_on(
        "n=3 W=1, switchover",
        Bounds {
            faults: Budget {
                switches: 1,
                ..KILL_AND_RESTART
            },
            ..bounds
        },
    );
    goes_on(
        "n=2 W=1, 5 epochs",
        Bounds {
            members: 2,
            epochs: 5,
            ..bounds
        },
    );
    goes_on(
        "n=3 W=1, 4 epochs, no write",
        Bounds {
            epochs: 4,
            writes: 0,
            ..bounds
        },
    );
    let twice = Budget {
        kills: 2,
        restarts: 2,
        ..NO_FAULTS
    };
    goes_on(
        "n=3 W=1, 2 kills, no write",
        Bounds {
            writes: 0,
            faults: twice,
            ..bounds
        },
    );
}
