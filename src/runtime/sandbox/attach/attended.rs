//! What a supervisor reads of its program, and who sees it besides the log.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use chrono::Utc;

use super::super::layout::InstanceDir;
use super::super::pty;
use super::super::record::Launch;
use super::audience::{Audience, Input};
use super::console::Held;
use crate::runtime::io::OutputStream;
use crate::runtime::logfiles::cri::Framer;

/// Longest time that the begin of a line is held back from those who look: shorter than people wait for, such as for a
/// prompt, and longer than programs take that write a line in pieces, which is kept whole.
const HOLD_LIMIT: Duration = Duration::from_millis(100);

/// One of the program's outputs.
#[derive(Debug)]
pub struct Output {
    /// Gives it, until it ended.
    pub pipe: Option<File>,
    /// Makes lines of it.
    framer: Framer,
    /// Since when something is held back.
    held_since: Option<Instant>,
    /// The other end of a terminal: without it a program that closes its terminal and opens it again would be read no
    /// more.
    _held_open: Option<OwnedFd>,
}

impl Output {
    fn new(pipe: Option<OwnedFd>, stream: OutputStream) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self { pipe: pipe.map(File::from), framer: Framer::new(stream), held_since: None, _held_open: None })
    }

    /// Which it is.
    pub const fn stream(&self) -> OutputStream {
        self.framer.stream()
    }

    /// Reads once, without waiting, and has the lines kept that are complete, piece by piece. Returns how much was read into
    /// the buffer.
    pub fn read(&mut self, buffer: &mut [u8], keep: &mut dyn FnMut(&[u8])) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        match pipe.read(buffer) {
            Ok(0) => {
                self.pipe = None;
                let mut lines = Vec::new();
                self.finish(&mut lines);
                keep(&lines);
                0
            }
            Ok(size) => {
                self.take(buffer.get(..size).unwrap_or_default(), Instant::now(), keep);
                size
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.pipe = None;
                0
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], now: Instant, keep: &mut dyn FnMut(&[u8])) {
        let (at, mut lines, mut is_kept) = (Utc::now(), Vec::new(), false);
        while !bytes.is_empty() {
            bytes = self.framer.push_piece(at, bytes, &mut lines);
            is_kept |= !lines.is_empty();
            keep(&lines);
            lines.clear();
        }
        let goes_on = self.held_since.filter(|_| !is_kept);
        self.held_since = self.framer.holds().then(|| goes_on.unwrap_or(now));
    }

    /// When what is held back is to be kept as a fragment.
    pub fn due(&self) -> Option<Instant> {
        self.held_since.map(|since| since + HOLD_LIMIT)
    }

    /// Appends what was held back for long enough.
    pub fn flush(&mut self, now: Instant, lines: &mut Vec<u8>) {
        if self.due().is_some_and(|due| due <= now) {
            self.framer.flush(Utc::now(), lines);
            self.held_since = None;
        }
    }

    /// Appends what is left, as no more is read.
    pub fn finish(&mut self, lines: &mut Vec<u8>) {
        self.framer.finish(Utc::now(), lines);
        self.held_since = None;
    }
}

/// What a supervisor attends.
#[derive(Debug)]
pub struct Attended {
    /// Standard output and standard error; the former alone has what is written to a terminal.
    pub outputs: [Output; 2],
    /// Those who are attached, where anybody can be.
    pub audience: Option<Audience>,
}

impl Held {
    /// Prepares for reading, once the program is ready, and lets in who wants to be attached.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn attend(self, dir: &InstanceDir, launch: &Launch) -> io::Result<Attended> {
        let (outputs, input) = match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let outputs = [
                    Output::new(Some(stdout), OutputStream::Stdout)?,
                    Output::new(Some(stderr), OutputStream::Stderr)?,
                ];
                (outputs, stdin.map(Input::Pipe))
            }
            Self::Terminal(socket) => {
                // It was sent before the program was ready.
                let master = pty::take_over(socket.as_fd())?;
                let mut output = Output::new(Some(master.try_clone()?), OutputStream::Stdout)?;
                output._held_open = pty::hold_open(master.as_fd()).ok();
                let input = Input::Terminal { master, open: launch.stdin };
                ([output, Output::new(None, OutputStream::Stderr)?], Some(input))
            }
        };
        let audience = input.map(|input| Audience::open(dir, input)).transpose()?;
        Ok(Attended { outputs, audience })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::logfiles::cri::Line;

    #[test]
    fn the_begin_of_a_line_is_held_back_for_a_moment_from_its_first_byte_on() {
        let (mut output, now) = (Output::new(None, OutputStream::Stdout).unwrap(), Instant::now());
        let after = |part: u32| now + HOLD_LIMIT * part / 10;
        let mut lines = Vec::new();
        assert_eq!(output.due(), None);
        for (part, text) in [(0, "a"), (6, "b"), (8, "c\nd"), (9, "e")] {
            output.take(text.as_bytes(), after(part), &mut |kept| lines.extend_from_slice(kept));
            output.flush(after(part), &mut lines);
        }
        assert_eq!(output.due(), Some(after(8) + HOLD_LIMIT), "a line that ended in time is whole");
        output.flush(after(17), &mut lines);
        output.flush(after(18), &mut lines);
        assert_eq!(output.due(), None, "nothing wakes anybody up");
        output.finish(&mut lines);
        let told: Vec<_> = lines.split(|byte| *byte == b'\n').filter_map(Line::parse).collect();
        let told: Vec<_> = told.iter().map(|line| (line.full, line.text)).collect();
        assert_eq!(told, [(true, &b"abc"[..]), (false, b"de"), (true, b"")]);
    }
}
