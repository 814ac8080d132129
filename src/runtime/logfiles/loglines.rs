//! What a log is read as: whole lines, or output as it was written.

use chrono::{DateTime, Utc};

use super::cri::Line;
use crate::runtime::io::{ExecOutput, LONGEST_LINE, LogLine, OutputStream};

/// Makes something of the lines and fragments of lines in a log.
pub trait Assemble: Send + 'static {
    /// What is made.
    type Item: Send + 'static;

    /// Leaves the next lines that end out.
    fn skip(&mut self, lines: u64);

    /// Takes the next fragment, and appends what it completes.
    fn take(&mut self, fragment: &Line<'_>, out: &mut Vec<Self::Item>);

    /// Appends what is left of a line that has not ended, where nothing more is read.
    fn finish(&mut self, out: &mut Vec<Self::Item>);

    /// Takes note that parts were dropped before they were read, and appends what tells of it.
    fn lost(&mut self, out: &mut Vec<Self::Item>);
}

/// What is told in place of output that was dropped before it was read.
pub const LOST: &str = "keel: output may be missing here; it was rotated away before it was read";

/// Joins the fragments of lines.
#[derive(Debug)]
pub struct Joined {
    since: Option<DateTime<Utc>>,
    /// When the last fragment was written.
    last: Option<DateTime<Utc>>,
    /// Lines that end and are left out.
    skip: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Joined {
    /// Whole lines that ended from then on, or all.
    pub const fn new(since: Option<DateTime<Utc>>) -> Self {
        Self { since, last: None, skip: 0, stdout: Vec::new(), stderr: Vec::new() }
    }
}

impl Assemble for Joined {
    type Item = LogLine;

    fn skip(&mut self, lines: u64) {
        self.skip = lines;
    }

    fn lost(&mut self, lines: &mut Vec<LogLine>) {
        self.stdout.clear();
        self.stderr.clear();
        self.skip = 0;
        // Not now, which is later than the lines that follow.
        lines.extend(self.last.map(|at| LogLine { at, stream: OutputStream::Stderr, text: LOST.to_owned() }));
    }

    fn finish(&mut self, lines: &mut Vec<LogLine>) {
        let (Some(at), 0) = (self.last.filter(|at| self.since.is_none_or(|since| *at >= since)), self.skip) else {
            return;
        };
        for (stream, held) in [(OutputStream::Stdout, &mut self.stdout), (OutputStream::Stderr, &mut self.stderr)] {
            let text = String::from_utf8_lossy(&std::mem::take(held)).into_owned();
            lines.extend((!text.is_empty()).then_some(LogLine { at, stream, text }));
        }
    }

    fn take(&mut self, line: &Line<'_>, lines: &mut Vec<LogLine>) {
        self.last = Some(line.at);
        let held = match line.stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        held.extend_from_slice(line.text);
        let is_wanted = self.skip == 0 && self.since.is_none_or(|since| line.at >= since);
        let mut tell = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            lines.extend(is_wanted.then_some(LogLine { at: line.at, stream: line.stream, text }));
        };
        while held.len() > LONGEST_LINE {
            let after = held.split_off(before_character(held, LONGEST_LINE));
            tell(&std::mem::replace(held, after));
        }
        if line.full {
            tell(&std::mem::take(held));
            self.skip = self.skip.saturating_sub(1);
        }
    }
}

/// Where to cut a text that is longer than this, so that no character of UTF-8 is cut.
fn before_character(text: &[u8], most: usize) -> usize {
    let continues = |at: usize| text.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    (most.saturating_sub(3)..=most).rev().find(|at| !continues(*at)).unwrap_or(most)
}

/// Gives output back as it was written, a fragment at a time. A last line without its line break gets one.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone attaches"))]
#[derive(Debug)]
pub struct Written;

impl Assemble for Written {
    type Item = ExecOutput;

    /// Nothing is left out: who wants output as it was written begins with a fragment of their choice.
    fn skip(&mut self, _lines: u64) {}

    /// Nothing is held back.
    fn finish(&mut self, _out: &mut Vec<ExecOutput>) {}

    fn lost(&mut self, out: &mut Vec<ExecOutput>) {
        out.push(ExecOutput::Stderr(format!("{LOST}\n").into_bytes().into()));
    }

    fn take(&mut self, fragment: &Line<'_>, out: &mut Vec<ExecOutput>) {
        let end: &[u8] = if fragment.full { b"\n" } else { b"" };
        let bytes = [fragment.text, end].concat().into();
        out.push(match fragment.stream {
            OutputStream::Stdout => ExecOutput::Stdout(bytes),
            OutputStream::Stderr => ExecOutput::Stderr(bytes),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts that come of these fragments of one stream, the last of which ends the line.
    fn joined(fragments: &[&[u8]]) -> Vec<String> {
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        for (index, text) in fragments.iter().enumerate() {
            let full = index + 1 == fragments.len();
            joined.take(&Line { at: DateTime::UNIX_EPOCH, stream: OutputStream::Stdout, full, text }, &mut lines);
        }
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces_that_are_the_same_together() {
        let longest = "x".repeat(LONGEST_LINE);
        assert_eq!(joined(&[longest.as_bytes(), b""]), [longest.as_str()]);
        assert_eq!(joined(&[longest.as_bytes(), b"y"]), [longest.as_str(), "y"]);
        let once = longest.repeat(3);
        assert_eq!(joined(&[once.as_bytes()]), [longest.as_str(); 3]);
        let fragments = vec![&b"a bc"[..]; LONGEST_LINE];
        let pieces = joined(&fragments);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE; 4]);
        assert_eq!(pieces.concat().into_bytes(), fragments.concat());
    }

    #[test]
    fn what_has_not_ended_is_told_at_the_end_where_it_is_wanted() {
        let finished = |since: Option<i64>, skip: u64| {
            let since = since.and_then(|second| DateTime::from_timestamp(second, 0));
            let (mut joined, mut lines) = (Joined::new(since), Vec::new());
            joined.skip(skip);
            for (second, full, stream, text) in [
                (1, true, OutputStream::Stdout, "whole"),
                (2, false, OutputStream::Stdout, "name"),
                (3, false, OutputStream::Stderr, "oh"),
                (4, false, OutputStream::Stdout, ": "),
            ] {
                let at = DateTime::from_timestamp(second, 0).unwrap();
                joined.take(&Line { at, stream, full, text: text.as_bytes() }, &mut lines);
            }
            joined.finish(&mut lines);
            joined.finish(&mut lines);
            lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(finished(None, 0), ["whole", "name: ", "oh"]);
        assert_eq!(finished(Some(4), 0), ["name: ", "oh"]);
        assert_eq!(finished(Some(5), 0), Vec::<String>::new());
        assert_eq!(finished(None, 1), ["name: ", "oh"]);
        assert_eq!(finished(None, 2), Vec::<String>::new(), "they belong to an older line");
    }

    #[test]
    fn no_character_is_cut() {
        for character in ["é", "€", "🦀"] {
            let text = format!("x{}", character.repeat(LONGEST_LINE));
            let pieces = joined(&[text.as_bytes()]);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| piece.len() <= LONGEST_LINE), "{character}");
        }
        let none = joined(&[&vec![0x80; LONGEST_LINE + 1]]);
        assert_eq!(none.iter().map(|piece| piece.chars().count()).collect::<Vec<_>>(), [LONGEST_LINE, 1]);
    }

    #[test]
    fn the_pieces_of_a_line_that_is_skipped_are_skipped() {
        let long = "x".repeat(2 * LONGEST_LINE);
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        joined.skip(1);
        for (full, text) in [(false, long.as_bytes()), (true, b"end"), (true, b"next")] {
            joined.take(&Line { at: DateTime::UNIX_EPOCH, stream: OutputStream::Stderr, full, text }, &mut lines);
        }
        assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["next"]);
    }
}
