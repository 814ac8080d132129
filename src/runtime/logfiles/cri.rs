//! Lines of kept output, as the Kubernetes CRI writes them: `RFC3339Nano STREAM P|F TEXT`.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::runtime::io::OutputStream;

/// Longest text of one line; longer ones are cut into fragments. The size that containerd and CRI-O use.
pub const LONGEST_TEXT: usize = 16 << 10;

/// Bytes of lines that are written out together: enough for few system calls, and little to hold.
const PIECE: usize = 16 << 10;

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was read.
    pub at: DateTime<Utc>,
    /// Where it was written.
    pub stream: OutputStream,
    /// Whether the line ends here; else the next fragment of the stream goes on with it.
    pub full: bool,
    /// The text without the line break.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads a line without its line break; `None` when it is none.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let at = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => OutputStream::Stdout,
            b"stderr" => OutputStream::Stderr,
            _ => return None,
        };
        let full = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { at: DateTime::parse_from_rfc3339(at).ok()?.to_utc(), stream, full, text: parts.next()? })
    }
}

/// Turns the bytes of one stream into lines, with at most [`LONGEST_TEXT`] bytes held back.
#[derive(Debug)]
pub struct Framer {
    stream: OutputStream,
    held: Vec<u8>,
    /// Whether the last line that was written is a fragment, which another one has to end.
    open: bool,
}

impl Framer {
    /// A framer for one stream.
    pub fn new(stream: OutputStream) -> Self {
        Self { stream, held: Vec::new(), open: false }
    }

    /// The stream.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone attaches"))]
    pub const fn stream(&self) -> OutputStream {
        self.stream
    }

    /// Whether something is held back.
    pub const fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes bytes that were read at `at` and appends the lines that they complete to `out`.
    pub fn push(&mut self, at: DateTime<Utc>, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let mut piece = Vec::new();
            bytes = self.push_piece(at, bytes, &mut piece);
            out.append(&mut piece);
        }
    }

    /// The same until there are 16 KiB of lines or somewhat more, and returns the bytes that come after these: the
    /// shortest lines are kept in some fifty times as many bytes.
    pub fn push_piece<'a>(&mut self, at: DateTime<Utc>, mut bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let stamp = at.to_rfc3339_opts(SecondsFormat::Nanos, true);
        while !bytes.is_empty() && out.len() < PIECE {
            let room = LONGEST_TEXT - self.held.len();
            let (text, full, rest) = match bytes.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => (&bytes[..end], true, &bytes[end + 1..]),
                None if bytes.len() > room => (&bytes[..room], false, &bytes[room..]),
                None => {
                    self.held.extend_from_slice(bytes);
                    return &[];
                }
            };
            self.write(&stamp, full, text, out);
            bytes = rest;
        }
        bytes
    }

    /// Appends what is held back as a fragment, for those who look meanwhile; its line goes on.
    pub fn flush(&mut self, at: DateTime<Utc>, out: &mut Vec<u8>) {
        if self.holds() {
            self.write(&at.to_rfc3339_opts(SecondsFormat::Nanos, true), false, &[], out);
        }
    }

    /// Ends the last line where it has not ended, as the stream has.
    pub fn finish(&mut self, at: DateTime<Utc>, out: &mut Vec<u8>) {
        if self.holds() || self.open {
            self.write(&at.to_rfc3339_opts(SecondsFormat::Nanos, true), true, &[], out);
        }
    }

    fn write(&mut self, stamp: &str, full: bool, text: &[u8], out: &mut Vec<u8>) {
        let stream = match self.stream {
            OutputStream::Stdout => " stdout ",
            OutputStream::Stderr => " stderr ",
        };
        out.extend_from_slice(stamp.as_bytes());
        out.extend_from_slice(stream.as_bytes());
        out.extend_from_slice(if full { b"F " } else { b"P " });
        out.append(&mut self.held);
        out.extend_from_slice(text);
        out.push(b'\n');
        self.open = !full;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap()
    }

    fn framed(parts: &[&[u8]]) -> Vec<u8> {
        let mut framer = Framer::new(OutputStream::Stdout);
        let mut out = Vec::new();
        for part in parts {
            framer.push(at(), part, &mut out);
        }
        framer.finish(at(), &mut out);
        out
    }

    #[test]
    fn a_line_is_written_as_the_cri_has_it() {
        assert_eq!(framed(&[b"hel", b"lo\n"]), b"2023-11-14T22:13:20.123456789Z stdout F hello\n");
    }

    #[test]
    fn short_lines_come_in_pieces_that_are_the_same_together() {
        let text = b"\n".repeat(64 << 10);
        let (mut framer, mut rest, mut pieces) = (Framer::new(OutputStream::Stdout), &text[..], Vec::new());
        while !rest.is_empty() {
            let mut piece = Vec::new();
            rest = framer.push_piece(at(), rest, &mut piece);
            pieces.push(piece);
        }
        assert!(pieces.iter().all(|piece| piece.len() < PIECE + 100 && piece.ends_with(b"\n")));
        assert_eq!(pieces.concat(), framed(&[&text]));
    }

    #[test]
    fn empty_lines_are_kept_and_an_unfinished_last_line_is_written() {
        let out = framed(&[b"\n\nend"]);
        let texts: Vec<_> = out.split(|b| *b == b'\n').filter_map(Line::parse).map(|line| line.text).collect();
        assert_eq!(texts, [&b""[..], b"", b"end"]);
    }

    #[test]
    fn a_long_line_is_cut_into_fragments_of_bounded_size() {
        let long = vec![b'x'; LONGEST_TEXT * 2 + 5];
        let out = framed(&[&long[..100], &long[100..], b"\nnext\n"]);
        let lines: Vec<_> = out.split(|b| *b == b'\n').filter_map(Line::parse).collect();
        let shape: Vec<_> = lines.iter().map(|line| (line.full, line.text.len())).collect();
        assert_eq!(shape, [(false, LONGEST_TEXT), (false, LONGEST_TEXT), (true, 5), (true, 4)]);
    }

    #[test]
    fn a_line_of_exactly_the_longest_text_is_one_line() {
        let mut line = vec![b'x'; LONGEST_TEXT];
        line.push(b'\n');
        let out = framed(&[&line]);
        let shape: Vec<_> =
            out.split(|b| *b == b'\n').filter_map(Line::parse).map(|l| (l.full, l.text.len())).collect();
        assert_eq!(shape, [(true, LONGEST_TEXT)]);
    }

    #[test]
    fn what_is_flushed_is_a_fragment_whose_line_goes_on_and_ends() {
        let mut framer = Framer::new(OutputStream::Stdout);
        let mut out = Vec::new();
        framer.flush(at(), &mut out);
        assert_eq!(out, b"", "nothing is held");
        framer.push(at(), b"one\nname: ", &mut out);
        assert!(framer.holds());
        framer.flush(at(), &mut out);
        framer.flush(at(), &mut out);
        assert!(!framer.holds());
        framer.push(at(), b"x\n", &mut out);
        framer.finish(at(), &mut out);
        framer.push(at(), b"end", &mut out);
        framer.flush(at(), &mut out);
        framer.finish(at(), &mut out);
        let lines: Vec<_> = out.split(|b| *b == b'\n').filter_map(Line::parse).collect();
        let shape: Vec<_> = lines.iter().map(|line| (line.full, line.text)).collect();
        let expected: [(bool, &[u8]); 5] =
            [(true, b"one"), (false, b"name: "), (true, b"x"), (false, b"end"), (true, b"")];
        assert_eq!(shape, expected);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let line = Line::parse(b"2023-11-14T22:13:20.123456789Z stderr P a b  c").unwrap();
        assert_eq!(line, Line { at: at(), stream: OutputStream::Stderr, full: false, text: b"a b  c" });
        assert_eq!(Line::parse(b"2023-11-14T22:13:20Z stdin F x"), None);
        assert_eq!(Line::parse(b"garbage"), None);
    }
}
