//! What a log is read as: whole lines, or output as it was written.

use chrono::{DateTime, Utc};

use super::cri::Line;
use super::logtail::Skip;
use crate::runtime::io::{ExecOutput, LogLine, LogText, OutputStream};
use crate::runtime::logline::Pieces;

/// Makes something of the lines and fragments of lines in a log.
pub trait Assemble: Send + 'static {
    /// What is made.
    type Item: Send + 'static;

    /// Leaves the next lines of each stream out.
    fn skip(&mut self, lines: Skip);

    /// Leaves out what else there is of a stream.
    fn leave_out(&mut self, stream: OutputStream);

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
    stdout: Open,
    stderr: Open,
    /// Where the last fragment was written whose line goes on.
    newest: OutputStream,
}

/// A line of one stream that has not ended.
#[derive(Debug, Default)]
struct Open {
    pieces: Pieces,
    /// When its last fragment was written; none where no line is open.
    at: Option<DateTime<Utc>>,
    /// Whether a piece of it was given.
    has_begun: bool,
    /// Lines that end and are left out, this one first.
    skip: u64,
    /// Whether nothing of the stream is wanted.
    is_left_out: bool,
}

impl Joined {
    /// Whole lines that ended from then on, or all.
    pub fn new(since: Option<DateTime<Utc>>) -> Self {
        let (stdout, stderr) = (Open::default(), Open::default());
        Self { since, last: None, stdout, stderr, newest: OutputStream::Stdout }
    }

    const fn open(&mut self, stream: OutputStream) -> &mut Open {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }

    fn is_recent(&self, at: DateTime<Utc>) -> bool {
        self.since.is_none_or(|since| at >= since)
    }
}

impl Assemble for Joined {
    type Item = LogLine;

    fn skip(&mut self, lines: Skip) {
        (self.stdout.skip, self.stderr.skip) = (lines.stdout, lines.stderr);
    }

    fn leave_out(&mut self, stream: OutputStream) {
        self.open(stream).is_left_out = true;
    }

    fn lost(&mut self, lines: &mut Vec<LogLine>) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let open = self.open(stream);
            let Open { at, has_begun, skip, mut pieces, .. } =
                std::mem::replace(open, Open { is_left_out: open.is_left_out, ..Open::default() });
            let text = pieces.end();
            // What comes next is no part of it.
            let is_told = |at: &DateTime<Utc>| has_begun || (skip == 0 && self.is_recent(*at) && !text.is_empty());
            if let Some(at) = at.filter(is_told) {
                lines.push(LogLine { at, stream, text: text.into(), goes_on: false });
            }
        }
        // Not now, which is later than the lines that follow.
        let told = |at| LogLine { at, stream: OutputStream::Stderr, text: LOST.into(), goes_on: false };
        lines.extend(self.last.map(told));
    }

    fn finish(&mut self, lines: &mut Vec<LogLine>) {
        let order = match self.newest {
            OutputStream::Stdout => [OutputStream::Stderr, OutputStream::Stdout],
            OutputStream::Stderr => [OutputStream::Stdout, OutputStream::Stderr],
        };
        for stream in order {
            let open = self.open(stream);
            let (at, has_begun, is_skipped) = (open.at.take(), std::mem::take(&mut open.has_begun), open.skip > 0);
            let text = open.pieces.end();
            let is_wanted = |at: &DateTime<Utc>| (has_begun || !is_skipped && self.is_recent(*at)) && !text.is_empty();
            if let Some(at) = at.filter(is_wanted) {
                lines.push(LogLine { at, stream, text: text.into(), goes_on: false });
            }
        }
    }

    fn take(&mut self, line: &Line<'_>, lines: &mut Vec<LogLine>) {
        let (at, stream) = (line.at, line.stream);
        let is_recent = self.is_recent(at);
        self.last = Some(at);
        let open = self.open(stream);
        if !open.is_left_out {
            let pieces = open.pieces.push(line.text);
            let is_told = open.has_begun || is_recent && open.skip == 0;
            open.at = Some(at).filter(|_| !line.full);
            open.has_begun |= is_told && !pieces.is_empty();
            let mut tell = |text: LogText, goes_on| {
                lines.extend(is_told.then_some(LogLine { at, stream, text, goes_on }));
            };
            pieces.into_iter().for_each(|piece| tell(piece, true));
            if line.full {
                tell(open.pieces.end().into(), false);
                open.has_begun = false;
            }
        }
        if line.full {
            let open = self.open(stream);
            open.skip = open.skip.saturating_sub(1);
        } else {
            self.newest = stream;
        }
    }
}

/// Gives output back as it was written, a fragment at a time. A last line without its line break gets one.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone attaches"))]
#[derive(Debug)]
pub struct Written;

impl Assemble for Written {
    type Item = ExecOutput;

    /// Nothing is left out: who wants output as it was written begins with a fragment of their choice.
    fn skip(&mut self, _lines: Skip) {}

    fn leave_out(&mut self, _stream: OutputStream) {}

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
    use crate::runtime::io::LONGEST_LINE;

    fn fragment(second: i64, stream: OutputStream, full: bool, text: &[u8]) -> Line<'_> {
        Line { at: DateTime::from_timestamp(second, 0).unwrap(), stream, full, text }
    }

    fn texts(lines: &[LogLine]) -> Vec<(&[u8], bool)> {
        lines.iter().map(|line| (line.text.as_bytes(), line.goes_on)).collect()
    }

    #[test]
    fn a_line_that_is_too_long_comes_in_pieces_that_say_so_and_bytes_are_kept() {
        let long = [vec![b'x'; LONGEST_LINE], b"\xff".to_vec()].concat();
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        for (stream, full, text) in [
            (OutputStream::Stdout, false, &long[..]),
            (OutputStream::Stderr, true, b"\xfe"),
            (OutputStream::Stdout, true, b"end"),
            (OutputStream::Stdout, true, b"next"),
        ] {
            joined.take(&fragment(1, stream, full, text), &mut lines);
        }
        let expected = [(&long[..LONGEST_LINE], true), (b"\xfe", false), (b"\xffend", false), (b"next", false)];
        assert_eq!(texts(&lines), expected);
    }

    #[test]
    fn what_has_not_ended_is_told_at_the_end_where_it_is_wanted() {
        let finished = |since: Option<i64>, skip: Skip, left_out: Option<OutputStream>| {
            let since = since.and_then(|second| DateTime::from_timestamp(second, 0));
            let (mut joined, mut lines) = (Joined::new(since), Vec::new());
            joined.skip(skip);
            left_out.into_iter().for_each(|stream| joined.leave_out(stream));
            for (second, full, stream, text) in [
                (1, true, OutputStream::Stdout, "whole"),
                (2, false, OutputStream::Stdout, "name"),
                (3, false, OutputStream::Stderr, "oh"),
                (4, false, OutputStream::Stdout, ": "),
            ] {
                joined.take(&fragment(second, stream, full, text.as_bytes()), &mut lines);
            }
            joined.finish(&mut lines);
            joined.finish(&mut lines);
            lines.into_iter().map(|line| line.text.lossy().into_owned()).collect::<Vec<_>>()
        };
        let (none, one) = (Skip::default(), Skip { stdout: 1, stderr: 0 });
        assert_eq!(
            finished(None, none, None),
            ["whole", "oh", "name: "],
            "the one that was written to last is the last one"
        );
        assert_eq!(finished(Some(3), none, None), ["oh", "name: "]);
        assert_eq!(finished(Some(4), none, None), ["name: "]);
        assert_eq!(finished(Some(5), none, None), Vec::<String>::new());
        assert_eq!(finished(None, one, None), ["oh", "name: "]);
        let both = Skip { stdout: 2, stderr: 1 };
        assert_eq!(finished(None, both, None), Vec::<String>::new(), "they belong to older lines");
        assert_eq!(finished(None, one, Some(OutputStream::Stderr)), ["name: "]);
        assert_eq!(finished(None, one, Some(OutputStream::Stdout)), ["oh"]);
    }

    #[test]
    fn the_pieces_of_a_line_that_is_skipped_are_skipped() {
        let long = vec![b'x'; 2 * LONGEST_LINE];
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        joined.skip(Skip { stdout: 0, stderr: 1 });
        for (full, text) in [(false, &long[..]), (true, b"end"), (true, b"next")] {
            joined.take(&fragment(1, OutputStream::Stderr, full, text), &mut lines);
        }
        assert_eq!(texts(&lines), [(&b"next"[..], false)]);
    }

    #[test]
    fn a_long_line_is_told_from_its_begin_though_one_of_the_other_stream_is_skipped_within_it() {
        let long = vec![b'x'; LONGEST_LINE];
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        joined.skip(Skip { stdout: 0, stderr: 1 });
        for (stream, full, text) in [
            (OutputStream::Stdout, false, &long[..]),
            (OutputStream::Stdout, false, b"y"),
            (OutputStream::Stderr, true, b"old"),
            (OutputStream::Stdout, true, b"end"),
        ] {
            joined.take(&fragment(1, stream, full, text), &mut lines);
        }
        assert_eq!(texts(&lines), [(&long[..], true), (&b"yend"[..], false)]);
    }

    #[test]
    fn a_line_whose_rest_is_lost_ends_before_that_is_told() {
        let long = vec![b'x'; LONGEST_LINE + 1];
        let (mut joined, mut lines) = (Joined::new(None), Vec::new());
        joined.take(&fragment(1, OutputStream::Stderr, false, &long), &mut lines);
        joined.lost(&mut lines);
        joined.take(&fragment(1, OutputStream::Stderr, true, b"next"), &mut lines);
        let expected = [(&long[1..], true), (b"x", false), (LOST.as_bytes(), false), (b"next", false)];
        assert_eq!(texts(&lines), expected);
    }
}
