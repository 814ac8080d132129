//! Output of a container with a terminal, which engines send without frames around its records: cut into records here,
//! since bollard waits for the end of a line for ever. Pure.

use bollard::container::LogOutput;
use bytes::{Bytes, BytesMut};

/// Longest text of one record: what Docker's copier and the CRI keep in one (16 KiB). The next record of a line begins with a
/// time of its own.
const LONGEST_TEXT: usize = 16 << 10;

/// Longest time before the text: RFC 3339 with nanoseconds and an offset, and a space.
const LONGEST_TIME: usize = 36;

/// Cuts a stream into records, each with its time before it. Holds no more than one record.
#[derive(Debug, Default)]
pub(super) struct Records {
    held: BytesMut,
}

impl Records {
    /// Takes what arrived; gives the records that it completes.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<LogOutput> {
        self.held.extend_from_slice(piece);
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Gives what is left at the end.
    pub(super) fn finish(&mut self) -> Option<LogOutput> {
        let rest = self.held.split();
        (!rest.is_empty()).then(|| console(rest.freeze()))
    }

    fn next(&mut self) -> Option<LogOutput> {
        let longest = time_of(&self.held) + LONGEST_TEXT;
        // A line break may follow a text of just this length.
        let window = self.held.get(..self.held.len().min(longest + 1))?;
        let length = match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.held.len() > longest => longest,
            None => return None,
        };
        Some(console(self.held.split_to(length).freeze()))
    }
}

fn console(message: Bytes) -> LogOutput {
    LogOutput::Console { message }
}

/// Length of the time before the text, where there is one.
fn time_of(record: &[u8]) -> usize {
    let end = record.iter().take(LONGEST_TIME).position(|byte| *byte == b' ');
    let is_time = |end: &usize| {
        let text = record.get(..*end).and_then(|text| std::str::from_utf8(text).ok());
        text.is_some_and(|text| chrono::DateTime::parse_from_rfc3339(text).is_ok())
    };
    end.filter(is_time).map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-26T16:50:08.141857995Z ";

    /// Lengths of the records that a text becomes when it arrives in pieces of this size.
    fn records(text: &str, size: usize) -> Vec<usize> {
        let mut records = Records::default();
        let mut found: Vec<LogOutput> = text.as_bytes().chunks(size).flat_map(|piece| records.push(piece)).collect();
        found.extend(records.finish());
        assert_eq!(found.iter().flat_map(|one| one.as_ref().to_vec()).collect::<Vec<u8>>(), text.as_bytes());
        found.iter().map(|one| one.as_ref().len()).collect()
    }

    #[test]
    fn a_line_is_a_record_whatever_pieces_it_comes_in() {
        let text = format!("{TIME}one\r\n{TIME}two\r\n{TIME}three");
        let line = TIME.len() + 5;
        for size in [1, 7, 4096] {
            assert_eq!(records(&text, size), [line, line, line]);
        }
    }

    #[test]
    fn each_record_of_a_long_line_begins_with_its_time() {
        let part = "x".repeat(LONGEST_TEXT);
        let text = format!("{TIME}{part}{TIME}{part}{TIME}rest\n{TIME}next\n");
        let full = TIME.len() + LONGEST_TEXT;
        for size in [1000, 1 << 20] {
            assert_eq!(records(&text, size), [full, full, TIME.len() + 5, TIME.len() + 5]);
        }
    }

    #[test]
    fn the_line_break_after_a_text_of_the_greatest_length_belongs_to_it() {
        let text = format!("{TIME}{}\n{TIME}next\n", "x".repeat(LONGEST_TEXT));
        for size in [1000, TIME.len() + LONGEST_TEXT, 1 << 20] {
            assert_eq!(records(&text, size), [TIME.len() + LONGEST_TEXT + 1, TIME.len() + 5], "{size}");
        }
    }

    #[test]
    fn what_never_ends_is_given_in_pieces() {
        let text = "y".repeat(LONGEST_TEXT * 3);
        assert_eq!(records(&text, 1000), [LONGEST_TEXT; 3]);
        let mut held = Records::default();
        held.push(text.as_bytes());
        assert!(held.held.len() <= LONGEST_TEXT);
    }
}
