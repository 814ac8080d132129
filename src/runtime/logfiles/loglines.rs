//! What a log is read as: whole lines, or output as it was written.

use chrono::{DateTime, Utc};

use super::cri::Line;
use crate::runtime::io::{ExecOutput, LogLine, OutputStream};

/// Longest line that is put together from fragments; a longer one is told in pieces of this size.
const LONGEST_LINE: usize = 1 << 20;

/// Makes something of the lines and fragments of lines in a log.
pub trait Assemble: Send + 'static {
    /// What is made.
    type Item: Send + 'static;

    /// Leaves the next lines that end out.
    fn skip(&mut self, lines: u64);

    /// Takes the next fragment, and appends what it completes.
    fn take(&mut self, fragment: &Line<'_>, out: &mut Vec<Self::Item>);

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

    fn take(&mut self, line: &Line<'_>, lines: &mut Vec<LogLine>) {
        self.last = Some(line.at);
        let held = match line.stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        held.extend_from_slice(line.text);
        if line.full || held.len() >= LONGEST_LINE {
            let text = String::from_utf8_lossy(held).into_owned();
            held.clear();
            if self.skip > 0 {
                self.skip -= u64::from(line.full);
                return;
            }
            if self.since.is_none_or(|since| line.at >= since) {
                lines.push(LogLine { at: line.at, stream: line.stream, text });
            }
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
    fn skip(&mut self, _lines: u64) {}

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
