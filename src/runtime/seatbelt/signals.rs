//! Signals, whose numbers are Linux's in specs and records, and this system's where they are sent.

use rustix::process::Signal as Native;

use crate::spec::Signal;

/// Linux's number of every signal that both systems have, and what it is here.
const SIGNALS: &[(i32, Native)] = &[
    (1, Native::HUP),
    (2, Native::INT),
    (3, Native::QUIT),
    (4, Native::ILL),
    (5, Native::TRAP),
    (6, Native::ABORT),
    (7, Native::BUS),
    (8, Native::FPE),
    (9, Native::KILL),
    (10, Native::USR1),
    (11, Native::SEGV),
    (12, Native::USR2),
    (13, Native::PIPE),
    (14, Native::ALARM),
    (15, Native::TERM),
    (17, Native::CHILD),
    (18, Native::CONT),
    (19, Native::STOP),
    (20, Native::TSTP),
    (21, Native::TTIN),
    (22, Native::TTOU),
    (23, Native::URG),
    (24, Native::XCPU),
    (25, Native::XFSZ),
    (26, Native::VTALARM),
    (27, Native::PROF),
    (28, Native::WINCH),
    (29, Native::IO),
    (31, Native::SYS),
];

/// The signal of this system; none where it has no such one, such as real-time signals.
pub fn native(signal: Signal) -> Option<Native> {
    SIGNALS.iter().find(|(number, _)| *number == signal.number()).map(|(_, native)| *native)
}

/// Linux's number of a signal of this system, as exits tell it.
pub fn number(raw: i32) -> i32 {
    SIGNALS.iter().find(|(_, native)| native.as_raw() == raw).map_or(raw, |(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_one_number_here_and_leads_back_to_itself() {
        for (linux, found) in SIGNALS {
            assert_eq!(number(found.as_raw()), *linux, "{found:?}");
        }
        assert_eq!(native(Signal::TERM), Some(Native::TERM));
        assert_eq!(native("SIGRTMIN+3".parse().unwrap()), None);
    }
}
